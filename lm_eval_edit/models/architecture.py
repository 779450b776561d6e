"""Where a decoder keeps its blocks and their MLP down-projections, found by structure and not by a table of names.

Blocks: the largest list of modules of one class whose length is the number of layers in the configuration.
Down-projection (the second MLP matrix W, a map from the f-dimensional key space to the d-dimensional residual stream):
the one linear map of a block outside its attention that leads back to the residual stream from a wider space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lm_eval_edit.errors import UserError
from lm_eval_edit.models import naming
from lm_eval_edit.models.devices import input_device, weight_of

_WANTED = "Editors need dense transformer blocks; mixture-of-experts and state-space blocks cannot be edited"


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
        down_projections: Module path of each block's MLP down-projection.
        hidden_size: d, the width of the residual stream.
        key_size: f, the width of the MLP's inner space.
    """

    blocks: tuple[str, ...]
    down_projections: tuple[str, ...]
    hidden_size: int
    key_size: int

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def weight(self, layer: int) -> str:
        """Parameter name of layer `layer`'s down-projection weight."""
        return self.down_projections[layer] + ".weight"

    @classmethod
    def discover(cls, model: PreTrainedModel) -> Architecture:
        """Find the parts of a Hugging Face causal language model.

        Raises:
            UserError: no list of blocks, or no single down-projection in a block (e.g. a mixture of experts), or a
                recurrent state in place of keys and values.
        """
        kept, name = _kept(model), type(model).__name__
        without = f"{name} keeps no keys and values from token to token" if kept and not kept.layers else ""
        try:
            found = cls._by_structure(model)
        except UserError as error:
            if not without:
                raise
            raise UserError(f"{without}: {error}") from None
        if without:
            raise UserError(f"{without}. {_WANTED}")
        if kept is not None and kept.other:
            layers = f"{kept.other} of its {found.n_layers} layers"
            raise UserError(f"{name} keeps a state besides keys and values in {layers}. {_WANTED}")
        return found

    @classmethod
    def _by_structure(cls, model: PreTrainedModel) -> Architecture:
        config = model.config.get_text_config(decoder=True)
        depth, hidden = config.num_hidden_layers, config.hidden_size
        lists = [
            (path, module)
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(m) for m in module}) == 1
        ]
        if not lists:
            raise UserError(
                f"{type(model).__name__} has no list of {depth} blocks of one class; "
                f"editors need a decoder of identical transformer blocks"
            )
        path, found = max(lists, key=lambda entry: sum(p.numel() for p in entry[1].parameters()))
        blocks = tuple(f"{path}.{index}" for index in range(depth))
        projections = tuple(_down_projection(name, block, hidden) for name, block in zip(blocks, found, strict=True))
        return cls(blocks, projections, hidden, linear_shape(model.get_submodule(projections[0]))[0])

    def mlp_projections(self, model: nn.Module, layer: int) -> tuple[str, ...]:
        """Module paths of all linear maps of a block's MLP, its down-projection among them, in module order."""
        block = self.blocks[layer]
        within = [path for path, m in model.get_submodule(block).named_modules() if is_linear(m)]
        return tuple(f"{block}.{path}" for path in within if not _in_attention(path))

    def gate_projection(self, model: nn.Module, layer: int) -> str:
        """Module path of the MLP map whose output passes through the activation: `c_fc`, or a gated MLP's gate.

        In a gated MLP, k = act(gate(x)) * up(x) is linear in the output of `up` alone, which tells the two apart.

        Raises:
            UserError: the block has no such map of its own, e.g. gate and up are one fused matrix.
        """
        down = self.down_projections[layer]
        wanted = (self.hidden_size, self.key_size)
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
    return [
        f"layer {layer} is out of range: the model has layers 0 to {n_layers - 1}; give edit_layers within it"
        for layer in layers
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
    except (RuntimeError, NotImplementedError):
        if input_device(model).type == "meta":
            return None
        raise


def _down_projection(block_path: str, block: nn.Module, hidden: int) -> str:
    _refuse_experts(block_path, block)
    linears = [(path, m) for path, m in block.named_modules() if is_linear(m) and not _in_attention(path)]
    back = [(linear_shape(m)[0], path) for path, m in linears if linear_shape(m)[1] == hidden]
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
    return f"{block_path}.{found[0]}"


def _refuse_experts(block_path: str, block: nn.Module) -> None:
    """Refuse a block with several MLPs side by side, or with a convolution over tokens."""
    for name, parameter in block.named_parameters():
        if parameter.ndim > 2 and parameter.shape[0] > 1:  # all experts in one tensor, or a convolution's kernel
            shape = "x".join(map(str, parameter.shape))
            raise UserError(f"block {block_path} holds {name} ({shape}), experts or a convolution. {_WANTED}")
    for path, module in block.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and any(is_linear(m) for m in module.modules()):
            raise UserError(
                f"block {block_path} holds {len(module)} modules in {path}, experts by their look. {_WANTED}"
            )
