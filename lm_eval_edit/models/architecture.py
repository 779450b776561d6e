"""Where a decoder keeps its blocks and their MLP down-projections, found by structure and not by a table of names.

Blocks: the largest list of modules of one class whose length is the number of layers in the configuration.
Down-projection (the second MLP matrix W, a map from the f-dimensional key space to the d-dimensional residual stream):
the one linear map of a block outside its attention that leads back to the residual stream from a wider space. A block
with a mixture of experts (`mixture`) may have one beside the experts, that of a shared expert, or none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_eval_edit.errors import UserError
from lm_eval_edit.models import naming, quantised
from lm_eval_edit.models.devices import input_device, weight_of
from lm_eval_edit.models.mixture import Mixture, eager_experts, find_mixture

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WANTED = (
    "Editors need dense transformer blocks, or mixtures of experts as transformers has kept them since 5.0: all "
    "down-projections in one tensor, in a module of its own with a router beside it. Other experts and state-space "
    "blocks cannot be edited"
)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear map: nn.Linear, or GPT-2's Conv1D."""
    return isinstance(module, (nn.Linear, Conv1D))


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear module stores its weight as (in, out), as Conv1D does; nn.Linear stores (out, in)."""
    return isinstance(module, Conv1D)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in features, out features) of a linear module."""
    rows, cols = weight_of(module).shape
    return (rows, cols) if is_transposed(module) else (cols, rows)


def _in_attention(path: str) -> bool:
    return any("attn" in part or "attention" in part for part in path.lower().split("."))


@dataclass(frozen=True)
class Architecture:
    """The named parts of one decoder that editors need.

    Attributes:
        blocks: Module path of each block, first to last.
        down_projections: Module path of each block's MLP down-projection: the shared expert's in a mixture that has
            one. Where experts are edited (`is_routed`), the name of the parameter that holds all of theirs.
        hidden_size: d, the width of the residual stream.
        key_sizes: f of each block, the width of the inner space of the MLP, or of one expert where experts are edited.
        mixtures: The mixture of experts of each block; None for a dense one.
    """

    blocks: tuple[str, ...]
    down_projections: tuple[str, ...]
    hidden_size: int
    key_sizes: tuple[int, ...]
    mixtures: tuple[Mixture | None, ...]

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def key_size(self) -> int:
        """The largest f of all blocks, the same in each of most models."""
        return max(self.key_sizes)

    def routed_mixture(self, layer: int) -> Mixture | None:
        """The mixture whose experts' matrices are what is edited of a layer; None where it is a linear map."""
        mixture = self.mixtures[layer]
        return mixture if mixture is not None and self.down_projections[layer] == mixture.down else None

    def is_routed(self, layer: int) -> bool:
        """Whether the edited matrices of a layer are those of a mixture's experts."""
        return self.routed_mixture(layer) is not None

    def weight(self, layer: int) -> str:
        """Parameter name of layer `layer`'s down-projection weight, or of that of all its experts."""
        return self.down_projections[layer] + ("" if self.is_routed(layer) else ".weight")

    def routed(self) -> Architecture:
        """The same with every mixture's experts as what is edited, also where it has a shared one."""
        downs, sizes = list(self.down_projections), list(self.key_sizes)
        for layer, mixture in enumerate(self.mixtures):
            if mixture is not None:
                downs[layer], sizes[layer] = mixture.down, mixture.key_size
        return replace(self, down_projections=tuple(downs), key_sizes=tuple(sizes))

    @classmethod
    def discover(cls, model: PreTrainedModel) -> Architecture:
        """Find the parts of a Hugging Face causal language model.

        Raises:
            UserError: no list of blocks, or no single down-projection in a block (e.g. experts in a list of
                modules), or a recurrent state in place of keys and values, or several residual streams, or weights
                that are quantised.
        """
        quantised.refuse(model)
        with eager_experts(model):
            kept, name = _kept(model), type(model).__name__
        without = f"{name} keeps no keys and values from token to token" if kept and not kept.layers else ""
        try:
            found = cls._by_structure(model)
        except UserError as error:
            if (method := quantised.method_of(model.config)) is not None:
                raise UserError(f"{name} is quantised{method} and cannot hold an edit; {quantised.REMEDY}") from None
            if not without:
                raise
            raise UserError(f"{without}: {error}") from None
        if without:
            raise UserError(f"{without}. {_WANTED}")
        handed_on = kept.handed_on.get(found.blocks[0]) if kept else None
        if handed_on and (why := _more_than_a_stream(handed_on, found.hidden_size)):
            raise UserError(f"the blocks of {name} hand on {why}; editors cannot edit it")
        return found

    @classmethod
    def _by_structure(cls, model: PreTrainedModel) -> Architecture:
        config = model.config.get_text_config(decoder=True)
        depth, hidden = config.num_hidden_layers, config.hidden_size
        lists = [
            (path, module)
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth
        ]
        # A hybrid may have a class for each of its kinds of blocks; they are blocks of one list then.
        lists = [entry for entry in lists if len({type(m) for m in entry[1]}) == 1] or [
            entry for entry in lists if all(any(is_linear(m) for m in block.modules()) for block in entry[1])
        ]
        if not lists:
            raise UserError(
                f"{type(model).__name__} has no list of {depth} blocks; "
                f"editors need a decoder of identical transformer blocks"
            )
        path, found = max(lists, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
        blocks = tuple(f"{path}.{index}" for index in range(depth))
        parts = [_edited_part(name, block, hidden) for name, block in zip(blocks, found, strict=True)]
        projections, sizes, mixtures = zip(*parts, strict=True)
        return cls(blocks, projections, hidden, sizes, mixtures)

    def mlp_projections(self, model: nn.Module, layer: int) -> tuple[str, ...]:
        """Module paths of all linear maps of a block's MLP, its down-projection among them, in module order.

        Of a mixture those of its shared expert, none where it has none: a router, and the gate of that expert's output,
        are no part of an MLP.
        """
        block, mixture = self.blocks[layer], self.mixtures[layer]
        found = {f"{block}.{path}": linear_shape(m) for path, m in _beside_mixers(model.get_submodule(block)).items()}
        if mixture is None:
            return tuple(found)
        if mixture.shared is None:
            return ()
        f, inside = found[mixture.shared][0], mixture.shared.rpartition(".")[0] + "."
        inner = ((f, self.hidden_size), (self.hidden_size, f), (self.hidden_size, 2 * f))  # the last: gate and up fused
        return tuple(
            path
            for path, shape in found.items()
            if path.startswith(inside) and path != mixture.router and shape in inner
        )

    def gate_projection(self, model: nn.Module, layer: int) -> str:
        """Module path of the MLP map whose output passes through the activation: `c_fc`, or a gated MLP's gate.

        In a gated MLP, k = act(gate(x)) * up(x) is linear in the output of `up` alone, which tells the two apart.

        Raises:
            UserError: the block has no such map of its own, e.g. gate and up are one fused matrix.
        """
        down = self.down_projections[layer]
        wanted = (self.hidden_size, self.key_sizes[layer])
        found = [path for path in self.mlp_projections(model, layer) if path != down]
        found = [path for path in found if linear_shape(model.get_submodule(path)) == wanted]
        if len(found) == 2:
            found = [path for path in found if not _key_is_linear_in(model, path, down, self.hidden_size)]
        if len(found) != 1:
            raise UserError(
                f"block {self.blocks[layer]} has no MLP map of its own from width {wanted[0]} to {wanted[1]} whose "
                f"output passes through the activation (a fused gate and up projection?)"
            )
        return found[0]

    def check_layers(self, layers: Sequence[Any]) -> list[str]:
        """Problems with a choice of layers, as sentences."""
        return layer_problems(layers, self.n_layers)


def layer_problems(layers: Sequence[Any], n_layers: int) -> list[str]:
    """Problems with a choice of layers for a model of `n_layers`, whatever they were given as, as sentences."""
    strange = [layer for layer in layers if not isinstance(layer, int) or isinstance(layer, bool)]
    if strange:
        return [f"layers: {strange[0]!r} is no layer; want whole numbers, from 0 to {n_layers - 1}"]
    twice = [f"layers: {layer} is there twice; give each layer once" for layer in dict.fromkeys(layers)
             if list(layers).count(layer) > 1]  # fmt: skip
    return twice + [
        f"layer {layer} is out of range: the model has layers 0 to {n_layers - 1}; give edit_layers within it"
        for layer in dict.fromkeys(layers)
        if not 0 <= layer < n_layers
    ]


@torch.no_grad()
def _key_is_linear_in(model: nn.Module, projection: str, down: str, width: int) -> bool:
    """Whether the input of `down` scales with the output of `projection`, both children of one MLP module."""
    weight = weight_of(model.get_submodule(down))
    x = torch.linspace(-1, 1, width, dtype=torch.float64).to(device=weight.device, dtype=weight.dtype)[None, None]
    keys: list[torch.Tensor] = []

    def key_for(factor: int) -> torch.Tensor:
        scale = model.get_submodule(projection).register_forward_hook(lambda module, args, output: output * factor)
        keep = model.get_submodule(down).register_forward_pre_hook(lambda module, args: keys.append(args[0]))
        try:
            model.get_submodule(down.rpartition(".")[0])(x)
        finally:
            scale.remove()
            keep.remove()
        return keys[-1].double()

    # A positive factor would pass through ReLU, and -1 through odd functions such as tanh, as through a linear map.
    once, thrice = key_for(1), key_for(-3)
    return bool((thrice + 3 * once).norm() <= 1e-2 * (3 * once).norm())


def _kept(model: PreTrainedModel) -> naming.Kept | None:
    """What a model keeps from token to token; None where it cannot be run.

    Not every model can be without its weights, on the meta device: such a one is judged by its structure alone now, and
    by what it does when it is loaded.
    """
    try:
        return naming.kept(model)
    except Exception:  # a model's code may stumble over having no weights in any way
        if input_device(model).type == "meta":
            return None
        raise


def _more_than_a_stream(handed_on: Sequence[tuple[int, ...]], hidden: int) -> str:
    """What blocks give each other that is not one residual stream, in words; empty for that alone.

    Passes that begin above some blocks hand on hidden states. Maps of attention, which have a fourth axis, are looked
    at by nobody.

    Args:
        handed_on: The shapes of what a block gives for one text of two tokens, hidden states first.
        hidden: Their width.
    """
    first, *others = handed_on
    if len(first) != 3 or first[-1] != hidden:
        told = "x".join(map(str, first))
        return f"hidden states of shape {told} for one text of two tokens, not one residual stream of width {hidden}"
    if more := [shape for shape in others if len(shape) == 3 and shape[:2] == first[:2]]:
        return f"something of width {more[0][-1]} for each token beside its hidden states, which later blocks read"
    return ""


def _edited_part(block_path: str, block: nn.Module, hidden: int) -> tuple[str, int, Mixture | None]:
    """(what is edited by default, f, the block's mixture): a down-projection, or without any that of all experts."""
    mixture = find_mixture(block_path, block, hidden)
    linears = _beside_mixers(block)
    if mixture is not None:
        linears = {path: m for path, m in linears.items() if f"{block_path}.{path}" != mixture.router}
        known = (mixture.down, mixture.up)
        _refuse_experts(block_path, block, True, [name.removeprefix(f"{block_path}.") for name in known])
        if not any(linear_shape(m)[1] == hidden for m in linears.values()):
            return mixture.down, mixture.key_size, mixture
    else:
        _refuse_experts(block_path, block, beside=bool(linears))
    path = _down_projection(block_path, linears, hidden)
    if mixture is not None:
        mixture = replace(mixture, shared=f"{block_path}.{path}")
    return f"{block_path}.{path}", linear_shape(linears[path])[0], mixture


def _down_projection(block_path: str, linears: Mapping[str, nn.Module], hidden: int) -> str:
    """The path within its block of the down-projection among the linear maps of its MLP."""
    back = [(linear_shape(m)[0], path) for path, m in linears.items() if linear_shape(m)[1] == hidden]
    # An MLP is wider inside than the residual stream as a rule. Where it is narrower, or as wide (then its last map is
    # the down-projection), it must be the only one.
    found = [path for width, path in back if width > hidden]
    found = found or [path for width, path in back if width < hidden]
    found = found or [path for _, path in back][-1:]
    if len(found) != 1:
        seen = ", ".join(found) or "none"
        raise UserError(
            f"block {block_path} has no single MLP down-projection (a linear map to width {hidden}); found: {seen}. "
            f"{_WANTED}"
        )
    return found[0]


def _mixers(block: nn.Module) -> tuple[str, ...]:
    """The children of a block that mix tokens by a convolution, as recurrent layers do: they hold no MLP."""
    return tuple(
        name for name, child in block.named_children() if any(isinstance(m, _CONVOLUTIONS) for m in child.modules())
    )


def _beside_mixers(block: nn.Module) -> dict[str, nn.Module]:
    """{path: linear map} of a block, outside of its attention and of what is recurrent or convolutional in it."""
    mixers = _mixers(block)
    return {
        path: m
        for path, m in block.named_modules()
        if is_linear(m) and not _in_attention(path) and path.split(".")[0] not in mixers
    }


def _refuse_experts(block_path: str, block: nn.Module, beside: bool, known: Collection[str] = ()) -> None:
    """Refuse a block with several MLPs side by side.

    Args:
        beside: Whether the block has an MLP beside its convolutions: those are of no concern then.
        known: Names of the parameters of experts that can be edited.
    """
    mixers = _mixers(block) if beside else ()
    for name, parameter in block.named_parameters():
        if name.split(".")[0] in mixers or name in known:
            continue
        if parameter.ndim > 2 and parameter.shape[0] > 1:  # all experts in one tensor, or a convolution's kernel
            shape = "x".join(map(str, parameter.shape))
            raise UserError(f"block {block_path} holds {name} ({shape}), experts or a convolution. {_WANTED}")
    for path, module in block.named_modules():
        if path.split(".")[0] in mixers:
            continue
        if isinstance(module, nn.ModuleList) and len(module) > 1 and any(is_linear(m) for m in module.modules()):
            raise UserError(
                f"block {block_path} holds {len(module)} modules in {path}, experts by their look. {_WANTED}. Such "
                f"lists come from a model's own code: leave trust_remote_code out where transformers has the model"
            )
