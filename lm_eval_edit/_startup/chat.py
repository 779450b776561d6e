"""What there is to say of chat templates before a model loads: one that is missing, one that is not used.

The harness finds out that a tokenizer has no chat template when model and edits are made, and that a chat model is
asked without one never, but by its name. Only runs with our model or our tasks are looked at.
"""

from __future__ import annotations

import fnmatch
import functools
import inspect
import logging
from collections.abc import Mapping
from typing import Any

from lm_eval_edit.errors import UserError, in_one_error, in_one_line, problems_of
from lm_eval_edit.tasklib.arguments import given, named_model
from lm_eval_edit.tasklib.editing import bare

logger = logging.getLogger("lm_eval_edit")

PERPLEXITY = "edithurt_perplexity"  # the only task of ours whose requests have no turn
_OURS = "edited_hf"  # a run of it that names no model is one of the demo's
_ANY = "Be brief."
_LOOKING = "looks_for_chat_templates"  # a mark on the harness's function, so that it is changed once


def look_before_loading(prefix: str, model_type: str) -> None:
    """Make the harness's `simple_evaluate` look at the chat template first. May be called again and again.

    Args:
        prefix: Of all tasks of ours.
        model_type: Ours.
    """
    from lm_eval import evaluator

    stock = evaluator.simple_evaluate
    if hasattr(stock, _LOOKING):
        return
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def simple_evaluate(*args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(*args, **kwargs)
        except TypeError:
            return stock(*args, **kwargs)  # a wrong call: Python words the error
        call.apply_defaults()
        asked = call.arguments
        names = [name for name in map(_name, asked.get("tasks") or []) if name.startswith(prefix)]
        if names or asked["model"] == model_type or getattr(type(asked["model"]), "__name__", "") == "EditedHFLM":
            look(asked, names)
        return stock(*args, **kwargs)

    setattr(simple_evaluate, _LOOKING, True)
    evaluator.simple_evaluate = simple_evaluate


def _name(task: Any) -> str:
    """The name of a task in any form that the harness takes."""
    if isinstance(task, Mapping):
        task = task.get("task") or ""
    return task if isinstance(task, str) else str(getattr(getattr(task, "config", None), "task", "") or "")


def look(asked: Mapping[str, Any], ours: list[str]) -> None:
    """Check the chat template that a run asks for, or advise one.

    Args:
        asked: The arguments of `simple_evaluate`.
        ours: The tasks of ours among those that are asked for.

    Raises:
        UserError: the run applies a chat template, and the tokenizer has none, or none of that name, or one that cannot
            show a user's turn; or it puts something around prompts of a task that knows none.
    """
    wanted = asked.get("apply_chat_template") or False
    if not wanted and not ours:
        return
    problems = bare.problems(ours, around=bool(wanted or asked.get("system_instruction")))
    try:
        _look_at_template(asked, ours, wanted)
    except UserError as error:
        problems += problems_of(error)
    if problems:
        raise in_one_error(problems)


def _look_at_template(asked: Mapping[str, Any], ours: list[str], wanted: bool | str) -> None:
    metadata, model = _metadata(asked), asked["model"]
    if wanted and any(fnmatch.fnmatch(PERPLEXITY, name) for name in ours):
        logger.warning(
            "%s reads its text as it stands, --apply_chat_template does not touch it: its figures are of plain text",
            PERPLEXITY,
        )
    # A model that is there already has its own, or a template of its own: arguments do not speak of it.
    tokenizer = _tokenizer(model, metadata) if isinstance(model, str) else getattr(model, "tokenizer", None)
    if tokenizer is None:  # an API, or one that cannot be loaded: whoever asks it tells
        return
    if wanted:
        _check(tokenizer, wanted, asked.get("system_instruction"), metadata)
    elif ours:
        _advise(tokenizer, metadata)


def _metadata(asked: Mapping[str, Any]) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    passed = asked.get("model_args")
    arguments = simple_parse_args_string(passed) if isinstance(passed, str) else dict(passed or {})
    return arguments | dict(asked.get("metadata") or {})


def _tokenizer(model: Any, metadata: dict[str, Any]) -> Any:
    """That of the checkpoint that the arguments name; without a name only our own type of model has one, the demo's."""
    if named_model(metadata) is None and not given(metadata.get("tokenizer")) and model != _OURS:
        return None
    from lm_eval_edit.tasklib.shorten import budget_of

    budget = budget_of(metadata, 0)
    return None if budget is None else budget.tokenizer


def _check(tokenizer: Any, wanted: bool | str, system: str | None, metadata: Mapping[str, Any]) -> None:
    from lm_eval_edit.edits.surroundings import template_arguments
    from lm_eval_edit.facts.chat import chat_frame, has_template

    if not has_template(tokenizer):
        raise UserError(
            "--apply_chat_template: this model's tokenizer has no chat template. Leave the option out, or give the "
            "tokenizer of the model's chat version (tokenizer=FOLDER or a hub id)"
        )
    templates = tokenizer.chat_template
    if isinstance(wanted, str) and isinstance(templates, Mapping) and wanted not in templates:
        raise UserError(
            f"--apply_chat_template {wanted}: this model's tokenizer has the templates {', '.join(sorted(templates))}"
        )
    arguments = template_arguments(metadata)
    if isinstance(wanted, str) and isinstance(templates, Mapping):
        _check_name(wanted, arguments)
    if system:
        _check_system(tokenizer, system, arguments)
    try:
        chat_frame(tokenizer, arguments, system)
    except UserError as error:
        hint = (
            ""
            if system or not _takes(tokenizer, _ANY, arguments)
            else ". Behind a system turn it can: give --system_instruction"
        )
        raise UserError(f"--apply_chat_template: {error}{hint}") from error


def _check_name(wanted: str, arguments: Mapping[str, Any]) -> None:
    """HFLM looks the name of a template up for the results, and renders with `default`."""
    if wanted not in ("default", arguments.get("chat_template")):
        raise UserError(
            f"--apply_chat_template {wanted}: the harness would render with the template 'default' all the same. Name "
            f'it for the rendering too: --model_args \'{{..., "chat_template_args": {{"chat_template": "{wanted}"}}}}\''
        )


def _check_system(tokenizer: Any, system: str, arguments: Mapping[str, Any]) -> None:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "?"}]
    try:
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **arguments)
        dropped = "" if system.strip() in shown else "shows no system instruction"
    except Exception as error:  # as the template words it
        dropped = f"takes no system instruction ({in_one_line(error)})"
    if dropped:
        raise UserError(
            f"--system_instruction: this model's chat template {dropped}, and the harness would leave it out. Leave "
            f"out --system_instruction, or --apply_chat_template"
        )


def _takes(tokenizer: Any, system: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the template shows a user's turn behind a system instruction."""
    from lm_eval_edit.facts.chat import chat_frame

    try:
        return system in chat_frame(tokenizer, arguments, system).before
    except UserError:
        return False


@functools.cache
def _advise_once() -> None:
    logger.warning(
        "this model has a chat template and is asked without it, as a base model is; --apply_chat_template asks it as "
        "a chat user would (docs/chat.md says what that does to each task)"
    )


def _advise(tokenizer: Any, metadata: Mapping[str, Any]) -> None:
    from lm_eval_edit.facts.chat import has_template

    if str(metadata.get("edit_chat_template")).lower() == "true":
        logger.warning(
            "the facts are edited inside the chat template (edit_chat_template=true) and everything is asked outside "
            "it: --apply_chat_template asks where they were edited"
        )
    elif has_template(tokenizer):
        _advise_once()
