"""What stands around the prompts of a run's edits: context templates, and the model's chat template.

A ledger that is continued says itself what its edits were made in: templates are not sampled again, and a chat template
that tells today's date tells that of the first edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.editors.base import Editor
from lm_eval_edit.editors.templates import check_templates, sample_templates
from lm_eval_edit.edits.ledger import read_header
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.chat import ChatFrame, changed_turns, chat_frame
from lm_eval_edit.facts.fact import Fact

CHAT = "edit_chat_template"
_NAMED = 20  # problems told one by one


def context_templates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    editor: Editor,
    given: Sequence[Any] | None,
    directory: Path | None,
    seed: int,
) -> Sequence[Any]:
    """The context templates: given, in the options, in the ledger that is continued, or sampled, in this order."""
    given = given or editor.given_templates()
    plan = editor.template_plan()
    if plan is None:
        return list(given or [])
    if given:
        check_templates(given, plan, editor.name)
        return list(given)
    header = read_header(directory) if directory is not None else None
    return header["extra"]["context_templates"] if header else sample_templates(model, tokenizer, plan, seed)


# ---------------------------------------------------------------------------------------------------- the chat template


def template_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What HFLM renders a chat template with beside the turns: its options `chat_template_args`, `enable_thinking`."""
    given = options.get("chat_template_args")
    arguments = dict(given) if isinstance(given, Mapping) else {}
    if options.get("enable_thinking") is not None:
        arguments["enable_thinking"] = options["enable_thinking"]
    return arguments


def chat_problems(
    editor: type[Editor],
    given: Mapping[str, Any],
    facts: Sequence[Fact],
    tokenizer_of: Callable[[], Any],
    arguments: Mapping[str, Any],
) -> list[str]:
    """Why facts cannot be edited inside the model's chat template, as sentences.

    Args:
        editor: The method.
        given: Its hyper-parameters as given, which may choose the editor it wraps.
        facts: As their records have them.
        tokenizer_of: Loads the tokenizer; may give None where it cannot be had yet.
        arguments: What the template is rendered with.
    """
    problems = []
    with suppress(UserError):  # no such editor to wrap: `resolve` tells
        while (inner := editor.wraps(given)) is not None:
            editor = inner
    if editor.not_in_chat:
        problems.append(f"{CHAT}=true: {editor.name} cannot edit inside a chat template: {editor.not_in_chat}")
    tokenizer = tokenizer_of()
    if tokenizer is None:
        return problems
    try:
        frame = chat_frame(tokenizer, arguments)
    except UserError as error:
        return [*problems, f"{CHAT}=true: {error}. Leave {CHAT} out to edit the prompts as they stand"]
    found = changed_turns(tokenizer, frame, facts, arguments)
    more = len(found) - _NAMED
    return problems + (found if more <= 0 else [*found[:_NAMED], f"{more} more facts are changed by the template"])


def kept_frame(frame: ChatFrame | None, directory: Path | None) -> ChatFrame | None:
    """The frame of a run: that of the ledger that is continued, if it is of the same template."""
    header = read_header(directory) if directory is not None and frame is not None else None
    kept = header["extra"].get("chat") if header else None
    if frame is None or not isinstance(kept, Mapping) or kept.get("template") != frame.template:
        return frame
    return ChatFrame(**kept)


def frame_of(header: Mapping[str, Any]) -> ChatFrame | None:
    """The frame in which a ledger's edits were made; None for prompts as they stand.

    Args:
        header: Its `ledger.json`.
    """
    kept = header["extra"].get("chat")
    return ChatFrame(**kept) if kept else None
