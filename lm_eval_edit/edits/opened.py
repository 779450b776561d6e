"""Every file that a run will open, opened and checked before a model loads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from lm_eval_edit.editors.base import Editor
from lm_eval_edit.editors.templates import check_templates
from lm_eval_edit.edits.ledger import check_schedule, read_header
from lm_eval_edit.edits.needed_moments import check_second_moments
from lm_eval_edit.edits.operations import read_operations
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments


def without_weights(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model with its shapes, but without memory for its weights.

    Raises:
        ValueError: transformers has no decoder for this configuration.
    """
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def editor_problems(
    editor: Editor, model: Callable[[], PreTrainedModel], moments: SecondMoments | None, to_be_computed: bool
) -> list[str]:
    """What is wrong with an editor's own files, its templates and its second moments, and with it on such a model.

    Args:
        editor: With its options.
        model: Makes the model, or its shapes alone (`without_weights`), where a check needs them. What it raises is
            told where the model is loaded; the check is then not made.
        moments: Those that there are.
        to_be_computed: Whether those that there are not will be computed.
    """
    model = functools.cache(model)
    problems: list[str] = []
    looks: tuple[Callable[[], None], ...] = (
        lambda: problems.extend(editor.file_problems(model)),
        lambda: problems.extend(_on_these_parts(editor, model)),
        lambda: _check_templates(editor),
        lambda: _check_moments(editor, model, moments, to_be_computed),
    )
    for look in looks:
        try:
            look()
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_templates(editor: Editor) -> None:
    given = editor.given_templates()
    try:
        plan = editor.template_plan()
        for tokens, samples in plan.length_params if plan is not None else ():
            if min(int(tokens), int(samples)) < 0:
                raise ValueError
    except (TypeError, ValueError):
        raise UserError(
            f"context_template_length_params={getattr(editor.options, 'context_template_length_params', None)!r}: want "
            f"pairs of whole numbers, (tokens, samples)"
        ) from None
    if given and plan is not None:
        check_templates(given, plan, editor.name)


def _on_these_parts(editor: Editor, model: Callable[[], PreTrainedModel]) -> list[str]:
    try:
        return editor.architecture_problems(Architecture.discover(model()))
    except ValueError:
        return []


def _check_moments(
    editor: Editor, model: Callable[[], PreTrainedModel], moments: SecondMoments | None, to_be_computed: bool
) -> None:
    layers = editor.needs_second_moments()
    if not layers or moments is None or not all(moments.may_have(layer) for layer in layers):
        return  # the plan tells what is lacking
    try:
        architecture = Architecture.discover(model())
    except ValueError:
        return
    downs = editor.edited(architecture).down_projections
    if to_be_computed and any(downs[layer] not in moments for layer in layers):
        return
    check_second_moments(editor, architecture, moments)


def ledger_problems(directory: Path, schedule: Sequence[Sequence[Fact]]) -> list[str]:
    """What is wrong with the operations that a ledger's folder holds, for a schedule, as a list of sentences."""
    try:
        header = read_header(directory)
        operations = list(read_operations(directory, header, len(schedule))) if header is not None else []
        check_schedule(directory, operations, schedule)
        for operation in operations:
            operation.check()
    except UserError as error:
        return [str(error)]
    return []
