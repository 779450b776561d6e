"""The schedule that a run's own arguments describe, as the edit-quality tasks ask about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.edits.scheduled import operations, read_facts, usable
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.facts.exported import edited_in_chat, export_of, exported_facts
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

    Where the model is an export and neither a method nor facts are named, its own facts are asked about.

    Raises:
        UserError: options with problems, no data, or an empty schedule.
    """
    settings, model = settings_of(metadata), named_model(dict(metadata))
    export = export_of(metadata)
    if export is not None and _asks_export(settings):
        return _facts_of_export(export, metadata)
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


def in_chat(metadata: Mapping[str, Any]) -> bool:
    """Whether the schedule's facts are edited inside the model's chat template."""
    settings, export = settings_of(metadata), export_of(metadata)
    return settings.edit_chat_template or (export is not None and _asks_export(settings) and edited_in_chat(export))


def _asks_export(settings: EditSettings) -> bool:
    return settings.editor == "none" and settings.edit_facts_for is settings.edit_dataset is None


def _facts_of_export(folder: Path, metadata: Mapping[str, Any]) -> tuple[Facts, list[Fact]]:
    """The first n_edits of the facts that an export was made with; all of them where no number is given."""
    facts = exported_facts(folder)
    if ordering := [f"{name}={metadata[name]}" for name in ("edit_seed", "edit_offset") if name in metadata]:
        raise UserError(
            f"{', '.join(ordering)}: {folder} is an export, whose {len(facts)} facts are asked in the order of its "
            f"edits. Leave it out, or give edit_dataset=FILE to ask about others"
        )
    wanted = settings_of(metadata).n_edits if "n_edits" in metadata else len(facts)
    if not 1 <= wanted <= len(facts):
        raise UserError(f"n_edits={wanted}: {folder} was made with {len(facts)} facts; give 1 to {len(facts)}")
    return facts, list(facts[:wanted])
