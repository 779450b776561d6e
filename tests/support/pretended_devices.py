"""Several devices on a machine with one: tensors that say they lie elsewhere, and fail where real ones would not mix.

Within `PretendedDevices()` every tensor still lives on the CPU and every number is really computed, but a tensor may
carry the name of another device: `x.device` gives it, `x.to("cuda:1")` and `torch.zeros(..., device="cuda:1")` bestow
it, results inherit it, and an operation on tensors of two devices raises as it does on real ones. PyTorch's own
exceptions are kept: a tensor without dimensions on the CPU mixes with any, `copy_` copies between devices, and a CPU
tensor may index one on a GPU. Not seen: what runs below Python (backward passes, which move gradients by themselves).
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

CPU = torch.device("cpu")
_GET_DEVICE = Tensor.device.__get__
_IS_CUDA = Tensor.is_cuda.__get__
_MOVES = {"to", "cpu", "cuda"}
_INDEXING = {"__getitem__", "__setitem__", "index", "index_put_", "index_put"}
_ANY = {"copy_", "_has_compatible_shallow_copy_type"}  # these take two devices
_SET_DATA = Tensor.data.__set__


class PretendedDevices(TorchFunctionMode):
    """Attributes:
    moved: How many tensors went from one device to another.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names = WeakIdKeyDictionary()
        self.moved = 0

    def __enter__(self):
        make = torch.nn.Parameter.__new__  # the one way to a tensor from a tensor that no mode is told of

        def named(cls, data=None, requires_grad=True):
            parameter = make(cls, data, requires_grad)
            if data is not None:
                self._names[parameter] = self.of(data)
            return parameter

        self._patch = mock.patch.object(torch.nn.Parameter, "__new__", named)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *raised):
        self._patch.stop()
        return super().__exit__(*raised)

    def place(self, module: torch.nn.Module, device: str) -> None:
        """Give a module's own parameters and buffers a device's name."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._names[tensor] = torch.device(device)

    def of(self, tensor: Tensor) -> torch.device:
        """Where a tensor pretends to be."""
        return self._names.get(tensor, CPU)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == _GET_DEVICE:
            return self.of(args[0])
        if func == _IS_CUDA:
            return self.of(args[0]).type == "cuda"
        if name == "_parse_to":
            return func(*args, **kwargs)
        if func == _SET_DATA:
            self._names[args[0]] = self.of(args[1])
            return func(*args)
        if name in _MOVES and args and isinstance(args[0], Tensor):
            return self._move(func, name, args, kwargs)
        if name.startswith("_foreach_"):
            return self._each(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device")
        if device is not None:
            kwargs["device"] = CPU
            device = torch.device(device) if not isinstance(device, torch.device) else device
        elif tensors:
            device = self._common(func, name, tensors)
        out = func(*args, **kwargs)
        if device is not None and device != CPU:
            inputs = {id(tensor) for tensor in tensors}
            self._name_all(out, device, but=inputs)
        if "grad" in name and isinstance(out, (tuple, list)):  # torch.autograd.grad: each where its input is
            for gradient, source in zip(out, tree_leaves(args[1]), strict=False):
                if isinstance(gradient, Tensor):
                    self._names[gradient] = self.of(source)
        return out

    def _each(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Lists of tensors, worked on position by position. (An optimiser sorts them by device below Python.)"""
        lists = [arg for arg in args if isinstance(arg, (list, tuple))]
        devices = [self._common(func, "", [t for t in at if isinstance(t, Tensor)]) for at in zip(*lists, strict=True)]
        out = func(*args, **kwargs)
        for tensor, device in zip(out or (), devices, strict=True) if out is not None else ():
            self._names[tensor] = device
        return out

    def _common(self, func: Any, name: str, tensors: list[Tensor]) -> torch.device:
        if name in _ANY or name == "grad":
            return self.of(tensors[0])
        if name in _INDEXING:
            tensors = [tensors[0], *(t for t in tensors[1:] if self.of(t) != CPU)]
        devices = {self.of(tensor) for tensor in tensors if tensor.ndim or self.of(tensor) != CPU}
        if len(devices) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {resolve_name(func) or name} found "
                f"{' and '.join(sorted(map(str, devices)))}"
            )
        return next(iter(devices), CPU)

    def _move(self, func: Any, name: str, args: tuple, kwargs: dict) -> Tensor:
        tensor, rest = args[0], list(args[1:])
        before = target = self.of(tensor)
        if name != "to":
            target = CPU if name == "cpu" else torch.device("cuda", rest[0] if rest else 0)
            rest, func = [], Tensor.to
        elif rest and (rest[0] is None or isinstance(rest[0], (str, torch.device, int))):
            given = rest.pop(0)
            target = before if given is None else torch.device(given)
            rest = rest or [tensor.dtype]
            rest[0] = tensor.dtype if rest[0] is None else rest[0]
        elif rest and isinstance(rest[0], Tensor):
            target = self.of(rest[0])
            rest[0] = rest[0].dtype
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"])
        kwargs.pop("device", None)
        out = func(tensor, *rest, **kwargs) if rest or kwargs else tensor
        if target != before:
            self.moved += 1
            out = out.clone() if out is tensor else out
        if out is not tensor:
            self._names[out] = target
        return out

    def _name_all(self, out: Any, device: torch.device, but: set[int]) -> None:
        def name(tensor: Tensor) -> Tensor:
            if id(tensor) not in but:
                self._names[tensor] = device
            return tensor

        tree_map_only(Tensor, name, out)
