"""Edits as a LoRA adapter: W' = W + B A with `lora_alpha = r`, so that the scale is 1, of one rank for all matrices.

Low-rank edits are held exactly. The one rank is the largest true rank among the parameters, the others are padded with
zeros: engines that know one rank per adapter (vLLM) read it too. The files are peft's own.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.export.edited import touched
from lm_eval_edit.export.selfcheck import ExportError
from lm_eval_edit.export.sums import DeltaSum, balanced
from lm_eval_edit.models.architecture import is_linear, is_transposed
from lm_eval_edit.models.devices import weight_of
from lm_eval_edit.weights.delta import LowRankDelta

#: Largest ‖B A − Δ‖ / ‖Δ‖ of a matrix read back. The same factors give 0; a decomposition made again on another machine
#: has other factors of the same Δ.
FACTOR_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Adapter:
    """The factors of an adapter.

    Attributes:
        factors: Parameter name to its update, in the parameter's own layout.
        true_ranks: Rank of each parameter's whole update.
        energy: ‖Δ_R‖² / ‖Δ‖² of each parameter; 1.0 where nothing was left out.
    """

    factors: Mapping[str, LowRankDelta]
    true_ranks: Mapping[str, int]
    energy: Mapping[str, float]

    @property
    def rank(self) -> int:
        """The one rank of all matrices."""
        return max(delta.rank for delta in self.factors.values())

    @property
    def is_exact(self) -> bool:
        """Whether no direction of any update was left out."""
        return all(delta.rank == self.true_ranks[name] for name, delta in self.factors.items())


def make_adapter(model: nn.Module, sums: Mapping[str, DeltaSum], rank: int | None = None) -> Adapter:
    """Decompose summed updates.

    Args:
        model: The model, for the modules that its parameters belong to.
        sums: Per parameter.
        rank: None for exact factors; a number for the best approximation of at most that rank (Eckart-Young).

    Raises:
        ConfigurationError: every parameter that an adapter cannot express, with the reason; an update that is not low
            rank while no rank was given; no update at all.
    """
    problems = [refused(why) for name in sums if (why := unexpressible(model, name))]
    dense = [name for name, total in sums.items() if not total.is_low_rank]
    if dense and rank is None and not problems:
        problems.append(
            f"to=peft: the updates of {touched(dense)} are not low rank, so that no adapter is exact. Use to=hf, or "
            f"give rank=R for the best approximation of rank R; the share of each update that it keeps is then told"
        )
    if problems:
        raise ConfigurationError(problems)
    factors, true_ranks, energy = {}, {}, {}
    for name, total in tqdm(sums.items(), desc="decomposing", unit="matrix", leave=False):
        u, s, vh = total.svd()
        if not len(s):  # the updates of this parameter cancel
            continue
        kept = len(s) if rank is None else min(rank, len(s))
        squares = s.double().square()
        factors[name] = balanced(u[:, :kept], s[:kept], vh[:kept], total.dtype)
        true_ranks[name] = len(s)
        energy[name] = float(squares[:kept].sum() / squares.sum())
    if not factors:
        raise ConfigurationError(["to=peft: the updates add up to nothing; there is nothing to export"])
    return Adapter(factors, true_ranks, energy)


def no_adapter_of_experts(name: str) -> str:
    """Why the experts of a mixture have no adapter, as a sentence without its full stop.

    Args:
        name: Of the parameter that holds them.
    """
    return (
        f"{name} holds the matrices of all experts in one parameter, and an adapter, as this package writes and vLLM "
        f"reads it, changes the weight matrices of linear maps only"
    )


def refused(why: str) -> str:
    """What an export that cannot be an adapter is told: why, and what there is instead."""
    return f"to=peft: {why}. Use to=hf, a checkpoint that transformers and vLLM load, or to=deltas"


def unexpressible(model: nn.Module, name: str) -> str | None:
    """Why no adapter changes a parameter, as a sentence without its full stop; None where one can.

    Args:
        model: The model, or its shapes alone.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf == "weight" and is_linear(module):
        return _taken_for_an_expert(model, path)
    if model.get_parameter(name).ndim == 3:
        return no_adapter_of_experts(name)
    kind = "a bias" if leaf == "bias" else f"the {leaf} of a {type(module).__name__}"
    return f"{name} is {kind}, and LoRA changes the weight matrices of linear maps only"


def _taken_for_an_expert(model: nn.Module, path: str) -> str | None:
    """Why a reader of adapters would look elsewhere than at a linear map, as a sentence; None where it finds it.

    Newer releases of peft take `....down_proj` of some kinds of mixtures for experts in a list, as checkpoints of
    transformers 4 had them, and adapt the tensor that holds them all: a shared expert, or a dense block, has no adapter
    that they read. Asked of peft itself, which has a list of those kinds.
    """
    try:
        conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # an older release, which does not
        return None
    config = peft.LoraConfig(target_modules=[path])
    conversion.convert_peft_config_for_transformers(
        config, model=model, conversions=conversion.get_model_conversion_mapping(model)
    )
    if path in (config.target_modules or ()):
        return None
    return (
        f"peft {peft.__version__} takes {path} of a {type(model).__name__} for one of the experts of an older "
        f"checkpoint, and would change the tensor of all routed experts in its place, or nothing"
    )


def write_adapter(
    model: PreTrainedModel, adapter: Adapter, folder: Path, base_model: str, revision: str | None = None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, through peft's own API.

    Args:
        model: The unedited model; it is the same, bit for bit, before and after.
        adapter: The factors.
        folder: An existing folder.
        base_model: What the adapter names as its base.
        revision: Of the base on the hub.
    """
    modules = {name.removesuffix(".weight"): delta for name, delta in adapter.factors.items()}
    rank = adapter.rank
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(modules),
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=all(is_transposed(model.get_submodule(path)) for path in modules),
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with _quiet_peft():
        adapted = peft.get_peft_model(model, config)
    try:
        for path, delta in modules.items():
            layer = model.get_submodule(path)
            assert isinstance(layer, LoraLayer), "peft has put one in the place of every target"
            a, b = delta.to_lora(is_transposed(layer.get_base_layer()))  # (r', in), (out, r')
            padding = rank - delta.rank
            (name,) = layer.lora_A
            for target, value in ((layer.lora_A, nn.functional.pad(a, (0, 0, 0, padding))),
                                  (layer.lora_B, nn.functional.pad(b, (0, padding)))):  # fmt: skip
                target[name].weight = nn.Parameter(value.to(weight_of(target[name]).device).contiguous())
        # peft shortens a long list to suffixes and stores a set in an order that changes from run to run.
        for written in adapted.peft_config.values():
            assert isinstance(written, peft.LoraConfig), "it was made from one"
            written.target_modules = sorted(modules)
            written.base_model_name_or_path, written.revision = base_model, revision
            written.init_lora_weights = True  # a reader that misses a tensor is left with zeros, not with noise
        adapted.save_pretrained(
            str(folder), save_embedding_layers=False
        )  # else it may ask the hub for the base's vocabulary
    finally:
        adapted.unload()
        vars(model).pop("peft_config", None)  # older releases of peft leave it there
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # peft sets it right, module by module
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about what peft asks it
        yield


def load_adapter(model: PreTrainedModel, folder: Path) -> peft.PeftModel:
    """The model with an adapter read from disk, as `lm_eval --model hf --model_args ...,peft=DIR` makes it."""
    with _quiet_peft():
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def check_adapter(adapted: peft.PeftModel, wanted: Adapter) -> None:
    """Compare every matrix of an adapter, as peft has loaded it, with what it stands for.

    Logits alone do not tell a part that was left out where a dtype's rounding moves them as far.

    Raises:
        ExportError: peft has no LoRA where an edit is, has one where none is, scales it, or has other factors.
    """
    model = adapted.get_base_model()
    found = {f"{path}.weight": layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if missing := [name for name in wanted.factors if name not in found]:
        raise ExportError(
            f"the adapter is ignored for {touched(missing)}: there is no LoRA there once peft has read it"
        )
    if strange := [name for name in found if name not in wanted.factors]:
        raise ExportError(f"the adapter changes {touched(strange)}, which no edit has touched")
    for name, delta in wanted.factors.items():
        layer = found[name]
        ((key, scale),) = layer.scaling.items()
        if scale != 1:
            raise ExportError(f"the adapter of {name} is applied {scale:g} times over")
        a, b = weight_of(layer.lora_A[key]).detach(), weight_of(layer.lora_B[key]).detach()
        pair = (a.T, b.T) if is_transposed(layer.get_base_layer()) else (b, a)
        off = _distance(LowRankDelta(*pair), delta.to(a.device))
        if not off <= FACTOR_TOLERANCE:
            raise ExportError(f"the adapter of {name} is off by {off:.2g} of the edit's own size")


def _distance(found: LowRankDelta, wanted: LowRankDelta) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64, through the small middle: neither product is formed."""
    left, right = torch.cat([found.left, -wanted.left], dim=1), torch.cat([found.right, wanted.right], dim=0)
    return float(LowRankDelta(left, right).svd()[1].norm() / wanted.svd()[1].norm())
