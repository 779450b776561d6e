"""What `lm-eval-edit validate` finds out about a run from its options alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit.commands._editors import shown
from lm_eval_edit.commands._layout import columns
from lm_eval_edit.editors.base import Editor
from lm_eval_edit.editors.hyperparameters import Hyperparameters, from_the_model
from lm_eval_edit.edits.needed_moments import check_second_moments
from lm_eval_edit.edits.opened import without_weights
from lm_eval_edit.errors import UserError
from lm_eval_edit.models.architecture import Architecture, is_linear, layer_problems, linear_shape
from lm_eval_edit.models.dtypes import dtype_name
from lm_eval_edit.plan import EditPlan, draft_plan, lacking_second_moments
from lm_eval_edit.settings import NAMES
from lm_eval_edit.weights.edited import wide_dtype

SHOWN = 5  # facts named one by one
LONG = 30  # characters of a value in its column


@dataclass(frozen=True)
class _Shapes:
    """What the model will be: itself without memory for its weights, its parts, and the dtype of its weights."""

    model: PreTrainedModel
    architecture: Architecture
    dtype: torch.dtype


def validation(options: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The description of a run, and its problems.

    Args:
        options: Those of `--model_args`.

    Returns:
        (lines to print, problems as sentences).
    """
    others = dict(options)
    pretrained = others.pop("pretrained", demo.NAME)
    ours = {name: others.pop(name) for name in NAMES if name in others}
    plan, problems = draft_plan(pretrained, ours, others)
    rows: list[tuple[str, str]] = []
    shapes: _Shapes | None = None
    parameters: list[str] | None = None
    if plan.config is not None:
        try:
            model = _without_weights(plan, plan.config)
            shapes = _Shapes(model, Architecture.discover(model), _dtype(plan, plan.config))
        except (UserError, ValueError) as error:
            problems += [str(error)] if str(error) not in problems else []
    chosen = plan.hyperparameters
    if shapes is not None:
        rows += _model(plan, shapes)
    if shapes is not None and chosen is not None:
        parameters = _parameters(chosen.editor, shapes, problems)
        rows += _edited(shapes.model, parameters)
    if chosen is not None:
        rows += _editor(chosen)
    rows += _facts(plan)
    if shapes is not None and chosen is not None:
        rows.append(("second moments", _second_moments(plan, chosen.editor, shapes.architecture, problems)))
    if shapes is not None:
        rows.append(("memory", _memory(chosen, shapes, parameters or [])))
    if plan.settings.edit_chat_template and chosen is not None:
        rows.append(("edited", "inside the chat template: the question or prompt is the user's turn"))
    if plan.settings.edit_ledger:
        rows.append(("ledger", plan.settings.edit_ledger))
    lines = columns(rows) if rows else ["nothing is known about this run"]
    return lines + _hyperparameters(plan), problems


def _without_weights(plan: EditPlan, config: PretrainedConfig) -> PreTrainedModel:
    """The model with its shapes, but without memory for its weights."""
    trusted = bool(plan.model_options.get("trust_remote_code"))
    return without_weights(config, trusted)


def _dtype(plan: EditPlan, config: PretrainedConfig) -> torch.dtype:
    """What the weights will be: the option `dtype`, else the checkpoint's own."""
    wanted = plan.model_options.get("dtype", "auto")
    wanted = config.get_text_config(decoder=True).dtype if wanted in ("auto", None) else wanted
    wanted = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    return wanted if isinstance(wanted, torch.dtype) else torch.float32


def _model(plan: EditPlan, shapes: _Shapes) -> list[tuple[str, str]]:
    model, architecture = shapes.model, shapes.architecture
    blocks = architecture.blocks
    return [
        (
            "model",
            f"{plan.pretrained}: {type(model).__name__} ({model.config.model_type}), {architecture.n_layers} layers, "
            f"width {architecture.hidden_size}, keys of {architecture.key_size}, {dtype_name(shapes.dtype)}",
        ),
        ("blocks", f"{blocks[0]} to {blocks[-1]}"),
        *(("mixtures" if not number else "", line) for number, line in enumerate(_mixtures(architecture))),
    ]


def _mixtures(architecture: Architecture) -> list[str]:
    """A line for each kind of mixture of experts among the blocks, and one for those that have none."""
    kinds: dict[tuple[str, int, int, int, str], list[int]] = {}
    dense = []
    for layer, mixture in enumerate(architecture.mixtures):
        if mixture is None:
            dense.append(layer)
            continue
        inside = [path.removeprefix(f"{mixture.path}.") for path in (mixture.router or "", mixture.shared or "")]
        own = mixture.down.removeprefix(f"{architecture.blocks[layer]}.")
        told = f"router {inside[0]}" + (f", shared expert {inside[1]}" if inside[1] else "")
        kinds.setdefault((own, mixture.n_experts, mixture.top_k, mixture.key_size, told), []).append(layer)
    lines = [
        f"{_named(layers)}: {experts} experts with keys of {size}, {top_k} picked for a token, {own}; {told}"
        for (own, experts, top_k, size, told), layers in kinds.items()
    ]
    return lines + ([f"{_named(dense)}: dense"] if lines and dense else [])


def _named(layers: Sequence[int]) -> str:
    """Ascending numbers as ranges: layers 0, 3-5."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    ranges = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"layer{'s' * (len(layers) > 1)} {ranges}"


def _parameters(editor: Editor, shapes: _Shapes, problems: list[str]) -> list[str] | None:
    """Names of what the editor may change; None where only an edit tells."""
    names = {name for name, _ in shapes.model.named_parameters()}
    if layer_problems(editor.layers(), shapes.architecture.n_layers):
        return None  # told by the plan
    try:
        found = editor.parameters(shapes.model, shapes.architecture)
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None
    return None if found is None else [name for name in found if name in names]


def _edited(model: PreTrainedModel, parameters: list[str] | None) -> list[tuple[str, str]]:
    if parameters is None:
        return [("edits", "what it edits is known after an edit only")]
    shown = parameters if len(parameters) <= 2 * SHOWN else parameters[:SHOWN]
    lines = [_parameter(model, name) for name in shown]
    if more := len(parameters) - len(shown):
        lines.append(f"and {more} more, to {_parameter(model, parameters[-1])}")
    return [("" if number else "edits", line) for number, line in enumerate(lines)]


def _parameter(model: PreTrainedModel, name: str) -> str:
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    if leaf == "weight" and is_linear(owner):
        inner, outer = linear_shape(owner)
        return f"{name}  ({inner} to {outer})"
    return f"{name}  ({', '.join(map(str, model.get_parameter(name).shape))})"


def _editor(chosen: Hyperparameters) -> list[tuple[str, str]]:
    editor, notices = chosen.editor, chosen.notices
    return [("editor", f"{editor.name}: {editor.summary}"), *(("", notice) for notice in notices)]


def _hyperparameters(plan: EditPlan) -> list[str]:
    if plan.hyperparameters is None:
        return []
    values = plan.hyperparameters.editor.describe()
    measured = from_the_model(plan.hyperparameters.editor)
    rows = []
    for name, value in values.items():
        text = "from the model" if name in measured else shown(value)
        origin = plan.origins.get(name, "")
        # A value that would widen its column for all the others stands behind its origin.
        rows.append((name, text, origin) if len(text) <= LONG else (name, "", f"{origin}: {text}" if origin else text))
    return ["", "hyper-parameters, and where each comes from", *columns(rows, indent=2)]


def _facts(plan: EditPlan) -> list[tuple[str, str]]:
    if plan.facts is None:
        return []
    facts, operations = plan.facts, plan.operations
    skipped = "".join(f"\n  {fact.id}: {fact.reason}" for fact in facts.skipped[:SHOWN])
    more = f"\n  and {len(facts.skipped) - SHOWN} more" if len(facts.skipped) > SHOWN else ""
    rows = [("facts", f"{facts.source}: {len(facts)} usable, {len(facts.skipped)} skipped{skipped}{more}")]
    if operations:
        sizes = Counter(len(operation) for operation in operations)
        split = ", ".join(f"{count} of {size} fact{'s' * (size > 1)}" for size, count in sizes.items())
        ids = [str(fact.id) for operation in operations for fact in operation]
        first = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
        rows.append(("operations", f"{len(operations)} ({split}), first to last: {first}"))
        rows += [("warning", warning) for warning in plan.repetitions.warnings()]
    return rows


def _second_moments(plan: EditPlan, editor: Editor, architecture: Architecture, problems: list[str]) -> str:
    """In words whether they are there; what is wrong with them joins the problems."""
    settings = plan.settings
    layers = [layer for layer in editor.needs_second_moments() if layer in range(architecture.n_layers)]  # else told
    needed = [editor.edited(architecture).down_projections[layer] for layer in layers]
    if not needed:
        return "not needed"
    if plan.second_moments is None:
        return "needed, and not readable"
    moments = plan.second_moments.regularised(settings.edit_mom2_regularisation)
    if settings.edit_corpus and any(module not in moments for module in needed):
        return f"computed from {settings.edit_corpus}, {settings.edit_corpus_tokens} tokens, unless the cache has them"
    try:
        check_second_moments(editor, architecture, moments)
    except UserError as error:
        told = str(error) in problems or lacking_second_moments(settings, editor, moments)
        if not told:
            problems.append(str(error))
        return "needed, and not usable as they are"
    return f"{moments.source}, for {', '.join(needed)}"


def _memory(chosen: Hyperparameters | None, shapes: _Shapes, parameters: list[str]) -> str:
    """Bytes of what editing keeps: weights, originals (and float32 sums, for a narrower dtype), moments and factors."""
    model, dtype = shapes.model, shapes.dtype
    wide = wide_dtype(dtype)
    edited = sum(model.get_parameter(name).numel() for name in parameters)
    parts = {"weights": sum(p.numel() for p in model.parameters()) * dtype.itemsize}
    if edited:
        experts = any(
            model.get_parameter(name).ndim == 3 for name in parameters
        )  # those that no edit reaches are not kept
        parts["originals of edited weights" + (", all experts" if experts else "")] = edited * dtype.itemsize
        if wide != dtype:
            parts[f"their sums in {dtype_name(wide)}"] = edited * wide.itemsize
    if chosen is not None:
        architecture = chosen.editor.edited(shapes.architecture)
        if sizes := [_moment_size(architecture, layer) for layer in chosen.editor.needs_second_moments()]:
            parts["second moments and their float64 factors"] = sum(sizes) * (4 + 8)
    return ", ".join(f"{name} {_size(size)}" for name, size in parts.items())


def _moment_size(architecture: Architecture, layer: int) -> int:
    """Numbers in a layer's second moment; 0 for a layer that there is not, which is told."""
    if layer not in range(architecture.n_layers):
        return 0
    mixture = architecture.mixtures[layer]
    blocks = mixture.n_experts if mixture is not None and architecture.is_routed(layer) else 1
    return int(blocks * architecture.key_sizes[layer] ** 2)


def _size(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
