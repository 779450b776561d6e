"""MEND's hypernetwork: what turns a fine-tuning gradient into an edit.

Mitchell et al., *Fast Model Editing at Scale*, ICLR 2022 (arXiv 2110.11309), section 3. The gradient of a weight is a
sum over tokens of outer products u δᵀ, u the layer's input and δ the gradient at its output. The network maps each pair
(u, δ) to a pair (ũ, δ̃), so that the edit is a sum over tokens as well.

Parameters and buffers have the names of EasyEdit's archives, so one loader serves all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lm_eval_edit.errors import UserError, in_one_line, nearest
from lm_eval_edit.models.architecture import is_linear, linear_shape

_EPSILON = 1e-7
_STATISTICS = ("u_mean", "v_mean", "u_std", "v_std", "u_s", "v_s", "k")


class _Layer(nn.Module):
    """h ← h + max(s_m ⊙ (U V h + b) + o_m, 0), scale s and offset o of the edited weight's own (eq. 6b and 6c)."""

    def __init__(self, width: int, rank: int, modes: int, generator: torch.Generator | None):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.v = nn.Parameter(torch.randn(rank, width, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))
        if modes:
            self.mode_scale = nn.Embedding.from_pretrained(torch.ones(modes, width), freeze=False)
            self.mode_shift = nn.Embedding.from_pretrained(torch.zeros(modes, width), freeze=False)

    def forward(self, h: Tensor, mode: int | None) -> Tensor:
        out = h @ self.v.T @ self.u.T + self.bias
        if mode is not None:
            out = out * self.mode_scale.weight[mode] + self.mode_shift.weight[mode]
        return h + out.clamp(min=0)  # unlike relu, clamp has a gradient at 0, where an untrained layer is


class GradientTransform(nn.Module):
    """g: (u, δ) → (ũ, δ̃), for all weights of one shape.

    Args:
        inputs, outputs: Width of u and of δ.
        rank: Of the layers' low-rank matrices.
        modes: How many weights share the network; 0 for a network of one weight's own.
        generator: Draws the initial V; U is zero, so an untrained network only normalises.
    """

    # (width,) running mean, standard deviation and sum of squares of u and of δ; (1,) the number of rows
    u_mean: Tensor
    u_std: Tensor
    u_s: Tensor
    v_mean: Tensor
    v_std: Tensor
    v_s: Tensor
    k: Tensor

    def __init__(
        self, inputs: int, outputs: int, rank: int, modes: int, depth: int = 2, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.widths = (inputs, outputs)
        for name, width in (("u", inputs), ("v", outputs)):  # v stands for δ, as in the archives
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.zeros(width))
            self.register_buffer(f"{name}_s", torch.zeros(width))
        self.register_buffer("k", torch.zeros(1))
        layers = [_Layer(inputs + outputs, rank, modes, generator) for _ in range(depth)]
        self.mlp = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def layers(self) -> Iterator[_Layer]:
        """The network's layers, first to last."""
        layers = self.mlp["layers"]
        assert isinstance(layers, nn.ModuleList), "they are made as one, and loading a state keeps the modules"
        for layer in layers:
            assert isinstance(layer, _Layer), "nothing else is put there"
            yield layer

    @torch.no_grad()
    def observe(self, u: Tensor, delta: Tensor) -> None:
        """Take (n, inputs) and (n, outputs) rows into the running mean and variance (Chan's parallel update)."""
        n, k = len(u), self.k.clone()
        if not n:
            return
        for name, rows in (("u", u), ("v", delta)):
            mean, total = getattr(self, f"{name}_mean"), getattr(self, f"{name}_s")
            own = rows.mean(dim=0)
            shift = own - mean
            total += ((rows - own) ** 2).sum(dim=0) + shift**2 * (k * n / (k + n))
            mean += shift * (n / (k + n))
        self.k += n
        if float(self.k) > 1:
            self.u_std.copy_((self.u_s / (self.k - 1)).sqrt())
            self.v_std.copy_((self.v_s / (self.k - 1)).sqrt())

    def forward(self, u: Tensor, delta: Tensor, mode: int | None) -> tuple[Tensor, Tensor]:
        """(..., inputs) and (..., outputs) to the same shapes. The statistics are used as they are."""
        h = torch.cat(
            [(u - self.u_mean) / (self.u_std + _EPSILON), (delta - self.v_mean) / (self.v_std + _EPSILON)], dim=-1
        )
        for layer in self.layers():
            h = layer(h, mode)
        u, delta = h.split(self.widths, dim=-1)
        return u, delta


@dataclass(frozen=True)
class _Place:
    """Where one edited weight finds its network."""

    key: str
    mode: int | None


class MendNetwork(nn.Module):
    """Hypernetworks for a model's edited weights, one for each shape, and a learned step size for each weight.

    Args:
        inner_params: Names of the edited weights, in the order of `edit_lrs`.
        shapes: (in, out) of each.
        rank: Of the low-rank matrices; at most in + out.
        edit_lr: Initial step size.
        generator: Draws the initial weights.
    """

    def __init__(
        self,
        inner_params: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        rank: int = 1920,
        edit_lr: float = 1e-4,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        keys = [str(tuple(shape)) for shape in shapes]
        self.inner_params = tuple(inner_params)
        self.places = tuple(_Place(key, keys[:index].count(key)) for index, key in enumerate(keys))
        self.edit_lrs = nn.Parameter(torch.full((len(keys),), edit_lr))
        self.mend = nn.ModuleDict()
        for key, (inputs, outputs) in dict(zip(keys, shapes, strict=True)).items():
            self.mend[key] = GradientTransform(
                inputs, outputs, min(rank, inputs + outputs), keys.count(key), generator=generator
            )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], inner_params: Sequence[str], source: str) -> MendNetwork:
        """A network from an archive's tensors, `edit_lrs` and `mend.<(in, out) or weight>.<name>`.

        Raises:
            UserError: entries are missing or of another kind of MEND, or were never trained.
        """
        grouped: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(tensors.items()):
            if name.startswith("mend."):
                key, _, rest = name.removeprefix("mend.").partition(".")
                grouped.setdefault(key, {})[rest] = tensor.float()
        network = cls((), ())
        network.inner_params = tuple(inner_params)
        if "edit_lrs" not in tensors or tensors["edit_lrs"].ndim != 1 or not grouped:
            raise UserError(
                f"{source} is no trained hypernetwork: want edit_lrs, one step size for each weight, and tensors named "
                f"mend.*; it holds {', '.join(sorted(tensors)[:4]) or 'nothing'}"
            )
        network.edit_lrs = nn.Parameter(tensors["edit_lrs"].float())
        for key, state in grouped.items():
            try:
                network.mend[key] = _transform(key, state, source)
            except UserError:
                raise
            except (ValueError, LookupError, TypeError, RuntimeError) as error:  # tensors of other shapes or names
                raise UserError(f"{source}: the hypernetwork {key} cannot be read ({in_one_line(error)})") from None
            if wrong := [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]:
                raise UserError(f"{source}: the hypernetwork {key} holds values that are not finite, in {wrong[0]}")
        shared = [key for key in grouped if key.startswith("(")]
        if not shared:
            network.places = tuple(_Place(name.replace(".", "#"), None) for name in inner_params)
        return network

    def fit_to(self, model: nn.Module, source: str) -> None:
        """Find each edited weight's network in this model.

        Raises:
            UserError: the model has no such weight, or one of another shape than the archive's (both are named).
        """
        check_names(self.inner_params)
        shapes = [linear_shape(inner_module(model, name)) for name in self.inner_params]
        if len(self.edit_lrs) != len(shapes):
            raise UserError(
                f"{source} has step sizes for {len(self.edit_lrs)} weights; inner_params names {len(shapes)}. "
                f"Give the inner_params it was trained with, in their order"
            )
        have = ", ".join(f"({', '.join(map(str, self.transform_of(key).widths))})" for key in self.mend)
        unshared = any(place.mode is None for place in self.places)
        keys = [place.key for place in self.places] if unshared else [str(shape) for shape in shapes]
        for name, key, shape in zip(self.inner_params, keys, shapes, strict=True):
            if key not in self.mend or self.mend[key].widths != shape:
                raise UserError(
                    f"{source} was trained for weights of (in, out) shape {have}; {name} of this model has {shape}. "
                    f"Give the archive of this very model, or train one: lm-eval-edit train mend"
                )
        if not unshared:
            self.places = tuple(_Place(key, keys[:index].count(key)) for index, key in enumerate(keys))
            for key in self.mend:
                scales = getattr(next(self.transform_of(key).layers()), "mode_scale", None)
                modes = len(scales.weight) if scales is not None else 0
                if modes != keys.count(key):
                    raise UserError(
                        f"{source} was trained for {modes} weights of (in, out) shape {key}; inner_params names "
                        f"{keys.count(key)}. Give the inner_params it was trained with, in their order"
                    )

    def transform(self, index: int, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(ũ, δ̃) for the edited weight `index`, the step size not yet multiplied in."""
        place = self.places[index]
        u, delta = self.transform_of(place.key)(u, delta, place.mode)
        return u, delta

    def transform_of(self, key: str) -> GradientTransform:
        """The network that the weights of one key share."""
        transform = self.mend[key]
        assert isinstance(transform, GradientTransform), "nothing else is put there"
        return transform


def _transform(key: str, state: dict[str, Tensor], source: str) -> GradientTransform:
    depth = 1 + max((int(name.split(".")[2]) for name in state if name.startswith("mlp.layers.")), default=-1)
    first = state.get("mlp.layers.0.u")
    if depth > len(state):
        raise UserError(f"{source}: the hypernetwork {key} names layer {depth - 1}, and has not so many tensors")
    if first is None or not {*_STATISTICS} <= state.keys() or len(first) != len(state["u_mean"]) + len(state["v_mean"]):
        raise UserError(
            f"{source}: the hypernetwork {key} is not of the kind that is read here (low-rank layers over u and δ "
            f"together, EasyEdit's combine: true and mlp_class: IDMLP); it holds {', '.join(sorted(state)[:6])}, ..."
        )
    if not all(bool(torch.isfinite(state[name]).all()) for name in _STATISTICS) or not float(state["k"]):
        raise UserError(f"{source}: the hypernetwork {key} has no normalisation statistics: it was never trained")
    modes = len(state["mlp.layers.0.mode_scale.weight"]) if "mlp.layers.0.mode_scale.weight" in state else 0
    made = GradientTransform(len(state["u_mean"]), len(state["v_mean"]), first.shape[1], modes, depth)
    made.load_state_dict(state)
    return made


def inner_module(model: nn.Module, parameter: str) -> nn.Module:
    """The linear map whose weight is `parameter`.

    Raises:
        UserError: there is none of that name in the model.
    """
    module, _, leaf = parameter.rpartition(".")
    found: nn.Module | None = dict(model.named_modules()).get(module)
    if leaf != "weight" or found is None or not is_linear(found):
        tensor = dict(model.named_parameters()).get(parameter)
        if tensor is not None and tensor.ndim > 2:
            shape = "x".join(map(str, tensor.shape))
            raise UserError(
                f"inner_params: {parameter} ({shape}) holds a mixture's experts, each of which is passed by the tokens "
                f"it is picked for: wanted are linear maps that every token passes, as a shared expert's or attention's"
            )
        weights = [f"{path}.weight" for path, m in model.named_modules() if is_linear(m)]
        raise UserError(
            f"inner_params: {parameter} is no linear map's weight in this model.{nearest(parameter, weights)}"
        )
    return found


def check_names(names: Sequence[str]) -> None:
    """Look at `inner_params` by themselves.

    Raises:
        UserError: one is there twice, whose gradient only one of the two would be given.
    """
    if twice := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
        raise UserError(f"inner_params: {twice[0]} is there twice; give each linear map once")


@contextlib.contextmanager
def token_factors(modules: Sequence[nn.Module]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within the block, each forward pass appends (input, probe) of every module, in the order they run.

    `probe` is a zero that has been added to the module's output: the loss's gradient with respect to it is δ, and no
    gradient runs further down than the lowest module.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    factors: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        probe = torch.zeros_like(output, requires_grad=True)
        seen[module] = (args[0].detach(), probe)
        if len(seen) == len(modules):
            factors[:] = [seen[m] for m in modules]
        return output + probe

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield factors
    finally:
        for handle in handles:
            handle.remove()
