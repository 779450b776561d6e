"""The facts of a run's schedule, decided in one place for the plan of edits and for the tasks that ask about them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lm_eval_edit import demo
from lm_eval_edit.edits.schedule import EditSchedule
from lm_eval_edit.facts.fact import Fact, Facts, SkippedFact
from lm_eval_edit.facts.sources import load_facts
from lm_eval_edit.settings import EditSettings

if TYPE_CHECKING:
    from lm_eval_edit.editors.base import Editor


def default_dataset(model: Any) -> str:
    """The facts of a run that names none: a model's own that the package knows (no model: the demo's), else ZsRE."""
    name = demo.NAME if model is None else demo.name_of(model)
    return "zsre" if name is None else demo.DEFAULT_FACTS[name]


def usable(facts: Facts, editor: Editor) -> Facts:
    """The facts an editor can edit; the others join the skipped ones with its reason."""
    reasons = [editor.fact_problem(fact) for fact in facts]
    kept = tuple(fact for fact, why in zip(facts, reasons, strict=True) if why is None)
    skipped = tuple(SkippedFact(fact.id, why) for fact, why in zip(facts, reasons, strict=True) if why is not None)
    return replace(facts, items=kept, skipped=facts.skipped + skipped) if skipped else facts


def read_facts(settings: EditSettings, model: Any) -> Facts:
    """The facts there are, for any editor.

    Args:
        settings: `edit_dataset` and `data_dir` of them.
        model: `demo`, `smollm2`, a path or hub id, a model object, or None.

    Raises:
        UserError: the data set is not there, or is broken.
    """
    return load_facts(settings.edit_dataset or default_dataset(model), settings.data_dir)


def operations(settings: EditSettings, facts: Facts, editor: Editor | None) -> list[list[Fact]]:
    """The editing operations that the settings make of facts.

    Args:
        facts: All there are: the order is drawn over them, so that it is the same for every editor.
        editor: Passes over what it cannot edit; None passes over nothing.

    Raises:
        UserError: there are fewer facts than n_edits.
    """
    schedule = EditSchedule(settings.n_edits, settings.edit_batch_size, settings.edit_seed, settings.edit_offset)
    if editor is None:
        return schedule.operations(facts)
    skipped = usable(facts, editor).skipped
    return schedule.operations(facts, lambda fact: editor.fact_problem(fact) is None, skipped)
