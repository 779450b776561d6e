"""The schedule that a run's own arguments describe, as the edit-quality tasks ask about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.edits.scheduled import operations, read_facts, usable
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.facts.fact import Fact, Facts
from lm_eval_edit.settings import NAMES, EditSettings, parse_settings
from lm_eval_edit.tasklib.arguments import named_model


def settings_of(metadata: Mapping[str, Any]) -> EditSettings:
    """The edit options among a run's arguments.

    Raises:
        ConfigurationError: with every problem of them.
    """
    settings, problems = parse_settings({name: metadata[name] for name in NAMES if name in metadata})
    if problems:
        raise ConfigurationError(problems)
    return settings


def scheduled_facts(metadata: Mapping[str, Any]) -> tuple[Facts, list[Fact]]:
    """The facts there are, and those of the schedule, first to last; the very ones that `edited_hf` edits.

    Args:
        metadata: All model arguments and `--metadata`.

    Raises:
        UserError: options with problems, no data, or an empty schedule.
    """
    settings, model = settings_of(metadata), named_model(dict(metadata))
    if settings.n_edits == 0:
        raise UserError(
            "n_edits=0: an empty schedule has no facts to ask about. For the figures before editing give editor=none "
            "with the n_edits of the schedule"
        )
    name = settings.edit_facts_for if settings.editor == "none" else settings.editor
    editor = None
    if name not in (None, "none"):
        from lm_eval_edit.edits.chosen import chosen_editor  # imports torch

        others = {name: value for name, value in metadata.items() if name not in NAMES}
        pretrained = model if model is not None else demo.NAME
        editor = chosen_editor(pretrained, replace(settings, editor=name), others)
    everything = read_facts(settings, model)
    scheduled = [fact for operation in operations(settings, everything, editor) for fact in operation]
    return usable(everything, editor) if editor else everything, scheduled
