"""Mixtures of experts: where a block keeps them, found by structure, and the keys their experts' down-projections read.

The experts of a mixture are one module with one 3-D tensor for all down-projections, (E, d, f) or (E, f, d), and one
twice as large for what leads into them, gate and up. A router picks some experts for each token; the mixture's output
is Σ_j g_j W_j k_j, g_j being the gate of the picked expert j and k_j (f,) its key. Side by side the matrices are one
map, W_s = [W_1 … W_E] (d, E f), of the stacked key k_s = concat(g_j k_j), with zeros for experts that are not picked.

What is picked, and with which gates, is read where the mixture hands it to its experts. How gate and up make a key is
asked of the experts' module; that the keys are what the module computes with is tried on one token, where there are
weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lm_eval_edit.errors import UserError
from lm_eval_edit.models.dtypes import dtype_name
from lm_eval_edit.models.stopping import Reached, until_reached

_APPLY_GATE = "_apply_gate"  # transformers' own: (N, 2 f) of gate and up -> (N, f) the key


@dataclass(frozen=True)
class Mixture:
    """The mixture of experts of one block.

    Attributes:
        path: Module path of the mixture, whose output joins the residual stream.
        experts: Module path of what holds all experts' tensors.
        router: Module path of what picks them; None where it is no module of its own.
        n_experts: E.
        top_k: How many are picked for a token.
        down: Name of the parameter that holds all down-projections.
        up: Name of the one that leads into them, gate and up.
        down_bias, up_bias: Names of their biases (E, ·), or None.
        transposed: Whether down-projections are stored as (E, f, d); else (E, d, f).
        key_size: f, the inner width of one expert.
        shared: Module path of the down-projection of an expert that every token passes through, or None.
    """

    path: str
    experts: str
    router: str | None
    n_experts: int
    top_k: int
    down: str
    up: str
    down_bias: str | None
    up_bias: str | None
    transposed: bool
    key_size: int
    shared: str | None = None

    def expert_keys(self, model: nn.Module, expert: int, hidden: Tensor) -> Tensor:
        """(N, f) keys of one expert for what the mixture is given, (N, d), without the gates."""
        up = model.get_parameter(self.up)[expert]
        inner = hidden.to(up.dtype) @ (up if self.transposed else up.T)
        if self.up_bias is not None:
            inner = inner + model.get_parameter(self.up_bias)[expert]
        keys: Tensor = getattr(model.get_submodule(self.experts), _APPLY_GATE)(inner)
        return keys

    def each_picked(
        self, model: nn.Module, hidden: Tensor, index: Tensor, gates: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(expert, (n,) tokens that it is picked for, (n, f) its gates times its keys) of every expert that is picked.

        Args:
            model: The model.
            hidden: (N, d) what the experts are given.
            index: (N, k) the experts picked for each token.
            gates: (N, k) their gates.
        """
        picks = torch.bincount(index.flatten(), minlength=self.n_experts).tolist()  # one wait for a device
        by_expert = index.flatten().argsort(stable=True).split(picks)
        for expert in (number for number, count in enumerate(picks) if count):
            tokens, place = by_expert[expert] // index.shape[1], by_expert[expert] % index.shape[1]
            yield expert, tokens, self.expert_keys(model, expert, hidden[tokens]) * gates[tokens, place, None]

    def stacked_keys(self, model: nn.Module, hidden: Tensor, index: Tensor, gates: Tensor) -> Tensor:
        """(N, E f) the stacked keys k_s; see `each_picked`."""
        stacked: Tensor | None = None
        for expert, tokens, keys in self.each_picked(model, hidden, index, gates):
            if stacked is None:
                stacked = keys.new_zeros(len(hidden), self.n_experts, self.key_size)
            stacked[tokens, expert] = keys
        assert stacked is not None, "a router picks at least one expert for each token"
        return stacked.flatten(1)

    def watch(self, model: nn.Module, told: Callable[[Tensor, Tensor, Tensor], None]) -> RemovableHandle:
        """Have `told` called with (hidden (N, d), index (N, k), gates (N, k)) whenever the experts are about to run."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            told(*_routed((*args, *kwargs.values())))

        return model.get_submodule(self.experts).register_forward_pre_hook(hook, with_kwargs=True)

    def per_expert(self, stacked: Tensor) -> Tensor:
        """(E, f, n) of stacked columns (E f, n)."""
        return stacked.reshape(self.n_experts, self.key_size, -1)


def _routed(given: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, index, gates) among what experts are called with, told apart by type and shape."""
    tensors = [value for value in given if isinstance(value, Tensor)]
    chosen = [t for t in tensors if not t.is_floating_point() and t.ndim == 2]
    if len(chosen) == 1:
        index = chosen[0]
        gates = [t for t in tensors if t.is_floating_point() and t.shape == index.shape]
        hidden = [t for t in tensors if t.is_floating_point() and all(t is not gate for gate in gates)]
        if len(gates) == 1 and len(hidden) == 1 and hidden[0].ndim == 2:
            return hidden[0], index, gates[0]
    shapes = ", ".join(f"{dtype_name(t.dtype)} {tuple(t.shape)}" for t in tensors)
    raise _Strange(f"its experts are called with {shapes}; wanted are hidden states, picked experts and their gates")


class _Strange(Exception):
    """What looks like a mixture is none whose keys can be read; says why."""


def find_mixture(block_path: str, block: nn.Module, hidden: int) -> Mixture | None:
    """The mixture of a block; None where there is none, or where its experts are kept in a way that is not known.

    Args:
        block_path: The block's path.
        block: The block.
        hidden: d.

    Raises:
        UserError: there is one, but its keys cannot be read.
    """
    for path, module in block.named_modules():
        held = _held(module, hidden)
        parent = path.rpartition(".")[0]
        if held is None or not parent:  # experts of the block itself cannot be run without the block
            continue
        down, up, transposed = held
        sizes = dict(module.named_parameters(recurse=False))
        experts, size = sizes[down].shape[0], sizes[down].shape[1 if transposed else 2]
        if not hasattr(module, _APPLY_GATE):
            continue
        biases = [name for name, p in sizes.items() if p.ndim == 2 and len(p) == experts]
        if len(biases) not in (0, 2):
            continue
        at = f"{block_path}.{path}."
        found = Mixture(
            path=f"{block_path}.{parent}",
            experts=at[:-1],
            router=_router(f"{block_path}.{parent}", block.get_submodule(parent), module, (experts, hidden)),
            n_experts=experts,
            top_k=0,
            down=at + down,
            up=at + up,
            down_bias=at + biases[1] if biases else None,  # in the order of their matrices: what leads in comes first
            up_bias=at + biases[0] if biases else None,
            transposed=transposed,
            key_size=size,
        )
        try:
            return replace(found, top_k=_tried(found, block, block_path, hidden))
        except _Strange as error:
            raise UserError(f"block {block_path} holds a mixture of experts in {parent}, and {error}") from None
    return None


def _held(module: nn.Module, d: int) -> tuple[str, str, bool] | None:
    """(down, up, transposed) of a module that holds experts: one tensor (E, d, f) or (E, f, d), one with 2 f for f."""
    tensors = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    if len(tensors) != 2:
        return None
    (first, a), (second, b) = tensors.items()
    if a.numel() < b.numel():
        (first, a), (second, b) = (second, b), (first, a)
    if len(a) != len(b) or a.numel() != 2 * b.numel():
        return None
    f = b[0].numel() // d
    if tuple(a.shape[1:]) == (2 * f, d) and tuple(b.shape[1:]) == (d, f):
        return second, first, False
    if tuple(a.shape[1:]) == (d, 2 * f) and tuple(b.shape[1:]) == (f, d):
        return second, first, True
    return None


def _router(path: str, mixture: nn.Module, experts: nn.Module, shape: tuple[int, int]) -> str | None:
    """The path of the part of a mixture with a weight (E, d), one without a bias of d: what scores the experts."""
    inside = {id(m) for m in experts.modules()}
    found = [
        (name, module)
        for name, module in mixture.named_modules()
        if name and id(module) not in inside
        and any(tuple(p.shape) == shape for p in module.parameters(recurse=False))
    ]  # fmt: skip
    # With a single expert a shared expert's gate has that shape as well; a router is a module of its own kind then.
    found = [entry for entry in found if not isinstance(entry[1], nn.Linear)] or found
    return f"{path}.{found[0][0]}" if found else None


@torch.no_grad()
def _tried(found: Mixture, block: nn.Module, block_path: str, d: int) -> int:
    """How many experts are picked for a token, seen on one; the experts' output for it is compared with their keys'."""
    within: dict[str, Any] = {
        name: value.removeprefix(f"{block_path}.") for name, value in vars(found).items() if isinstance(value, str)
    }
    inner = replace(found, **within)
    weight = block.get_parameter(inner.down)
    x = torch.linspace(-1, 1, d, dtype=torch.float64).to(device=weight.device, dtype=weight.dtype)[None, None]
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    outputs: list[Tensor] = []

    def reached(hidden: Tensor, index: Tensor, gates: Tensor) -> None:
        seen.append((hidden, index, gates))
        if weight.device.type == "meta":
            raise Reached

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(output.clone())  # some mixtures add to it in place

    with contextlib.ExitStack() as stack:
        stack.callback(inner.watch(block, reached).remove)
        stack.callback(block.get_submodule(inner.experts).register_forward_hook(keep).remove)
        stack.enter_context(eager_experts(block))
        stack.enter_context(until_reached())
        block.get_submodule(inner.path)(x)
    if not seen:
        raise _Strange("its experts are not called")
    hidden, index, gates = seen[0]
    if outputs:
        wanted = outputs[0].flatten(0, -2).double()
        given = torch.zeros_like(wanted)
        for expert, tokens, keys in inner.each_picked(block, hidden, index, gates):
            matrix = block.get_parameter(inner.down)[expert].double()
            given[tokens] += keys.double() @ (matrix if inner.transposed else matrix.T)
            if inner.down_bias is not None:
                gate = gates[tokens][index[tokens] == expert].double()
                given[tokens] += gate[:, None] * block.get_parameter(inner.down_bias)[expert].double()
        if not bool((given - wanted).norm() <= 5e-2 * wanted.norm()):  # half precision rounds; another form is far off
            raise _Strange("its experts compute something else than Σ gate · W · act(gate) · up: it cannot be edited")
    return index.shape[1]


@contextlib.contextmanager
def eager_experts(model: nn.Module) -> Iterator[None]:
    """Within the block a model computes its experts one after another, in torch's own operations; then as before.

    Without weights all that are picked in one product: one after another is a loop over numbers that nobody has then.
    """
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, _APPLY_GATE)}
    kept = [(config, config._experts_implementation) for config in configs.values()]
    weights = all(parameter.device.type != "meta" for parameter in model.parameters())
    try:
        for config, _ in kept:
            config._experts_implementation = "eager" if weights else "batched_mm"
        yield
    finally:
        for config, before in kept:
            config._experts_implementation = before
