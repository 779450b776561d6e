"""Everything about a sweep that can be known before a model loads: every problem at once, and a plan for every row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lm_eval_edit import demo
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.edits.chosen import model_config
from lm_eval_edit.edits.prompt_lengths import planned_tokenizer
from lm_eval_edit.edits.run import batch_problems
from lm_eval_edit.edits.surroundings import template_arguments
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.facts.chat import chat_frame
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.plan import EditPlan, draft_plan
from lm_eval_edit.settings import NAMES, OF_TASKS
from lm_eval_edit.sweep.design import LEAVE_OUT, Design, Model, Row
from lm_eval_edit.sweep.evaluation import find_tasks
from lm_eval_edit.sweep.folder import Cell, SweepFolder
from lm_eval_edit.tasklib import before_loading
from lm_eval_edit.tasklib.editing import bare
from lm_eval_edit.tasklib.editing import documents as editing_documents


@dataclass(frozen=True)
class Schedule:
    """Checkpoints of a row that share edits.

    Attributes:
        checkpoints: Numbers of edits, ascending.
        plan: For the last of them; None in a dry run without the model's configuration.
    """

    checkpoints: tuple[int, ...]
    plan: EditPlan | None


@dataclass(frozen=True)
class Checked:
    """A design found fit to run.

    Attributes:
        rows: Its rows, with the checkpoints that can be reached.
        schedules: Row name below its model -> its schedules.
        general, about_schedule: The tasks about the model, and those about the rows' own facts.
        configs: Label of a model -> its configuration; None where it could not be had, in a dry run.
        notices: What the user should know.
        problems: Why it cannot run yet; only in a dry run.
    """

    design: Design
    folder: SweepFolder
    rows: list[Row]
    schedules: dict[tuple[str, str], list[Schedule]]
    general: tuple[str, ...]
    about_schedule: tuple[str, ...]
    configs: dict[str, PretrainedConfig | None] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def baseline(self, model: Model) -> Cell | None:
        """The cell of the unedited model; None where all tasks are about the rows' own facts."""
        return Cell(model.label, None, 0, self.general) if self.general else None

    def before(self, row: Row) -> Cell | None:
        """The cell of a row's own facts asked before the edits; None where no task asks."""
        return Cell(row.model.label, row, 0, self.about_schedule) if self.about_schedule else None

    def edited(self, row: Row) -> list[Cell]:
        """A row's cells after edits."""
        tasks = self.general + self.about_schedule
        return [Cell(row.model.label, row, n, tasks) for n in row.checkpoints]

    def cells(self) -> list[Cell]:
        """Every cell of the sweep."""
        found = []
        for model in self.design.models:
            found += [cell for cell in [self.baseline(model)] if cell]
            for row in self.rows:
                if row.model == model:
                    found += [cell for cell in [self.before(row)] if cell] + self.edited(row)
        return found


def loading_args(design: Design, model: Model) -> dict[str, Any]:
    """What `--model_args` would say about the model and its tasks, not about edits."""
    common = {name: value for name, value in design.model_args.items() if name not in NAMES or name in OF_TASKS}
    return {**common, **model.args}


def row_args(design: Design, row: Row, n_edits: int) -> dict[str, Any]:
    """What `--model_args` would say about a cell of a row."""
    return {**design.model_args, **row.model.args, **row.edit_args(n_edits)}


def draft(args: Mapping[str, Any]) -> tuple[EditPlan, list[str]]:
    """A plan from everything `--model_args` would say."""
    ours = {name: value for name, value in args.items() if name in NAMES}
    others = {name: value for name, value in args.items() if name not in NAMES and name != "pretrained"}
    return draft_plan(args["pretrained"], ours, others)


def check(design: Design, folder: SweepFolder, *, dry_run: bool = False) -> Checked:
    """Check a design as far as it can be without weights.

    Args:
        dry_run: What rows lack (second moments, an archive, facts) is kept as `problems`, so that the cells can be
            shown all the same; a model whose configuration cannot be had (no network) gives a notice.

    Raises:
        ConfigurationError: every problem found.
    """
    problems = folder.check(design)
    notices: list[str] = []
    general: tuple[str, ...] = ()
    about_schedule: tuple[str, ...] = ()
    if design.include_path is not None and not Path(design.include_path).exists():
        problems.append(f"include_path={design.include_path}: no such folder; give one with the YAML of tasks")
    try:
        general, about_schedule = find_tasks(design.tasks, design.include_path)
    except UserError as error:
        problems.append(str(error))
    problems += [f"apply_chat_template: {each}" for each in bare.problems(about_schedule, design.apply_chat_template)]
    rows, schedules, configs = [], {}, {}
    lacking: list[str] = []
    moments: dict[str, SecondMoments] = {}
    for model in design.models:
        args = loading_args(design, model)
        config, found = model_config(model.pretrained, args)
        configs[model.label] = config
        if config is None:
            (notices if dry_run else problems).extend(
                f"{line}: its rows are not checked" if dry_run else line for line in found
            )
        else:
            problems += _problems(lambda args=args: before_loading.check_records(general, args))
            if design.apply_chat_template:
                problems += _problems(lambda model=model, args=args: _check_template(model, args))
        for row in design.rows():
            if row.model != model:
                continue
            if config is None:
                lacking += _without_model(row)
                schedules[model.label, row.name] = [Schedule(counts, None) for counts in row.schedules()]
            else:
                row = _reachable(design, row) if design.too_few_facts == LEAVE_OUT else row
                if row.left_out:
                    beyond, why = ", ".join(map(str, row.left_out)), next(iter(row.left_out.values()))
                    notices.append(f"{row.name}: {beyond} left out: {why}")
                schedules[model.label, row.name] = _plans(design, folder, row, about_schedule, moments, lacking)
            rows.append(row)
    # What is wrong with an option of every cell was told once, and is no further mistake of each row.
    lacking = [line for line in dict.fromkeys(lacking) if line.partition(": ")[2] not in problems]
    if problems or (lacking and not dry_run):
        raise ConfigurationError(dict.fromkeys(problems + lacking))
    return Checked(design, folder, rows, schedules, general, about_schedule, configs, notices, lacking)


def _check_template(model: Model, args: Mapping[str, Any]) -> None:
    """Check that a model's tokenizer has a chat template that can ask; one that cannot be had yet is not checked.

    Raises:
        UserError: naming the model.
    """
    tokenizer = planned_tokenizer(demo.loadable(model.pretrained), args)
    try:
        if tokenizer is not None:
            chat_frame(tokenizer, template_arguments(args))
    except UserError as error:
        raise UserError(
            f"apply_chat_template: {model.label}: {error}. Leave apply_chat_template out, or the model"
        ) from error


def _problems(look: Any) -> list[str]:
    try:
        look()
    except ConfigurationError as error:
        return error.problems
    except UserError as error:
        return [str(error)]
    return []


def _without_model(row: Row) -> list[str]:
    """What can be said of a row's editor alone."""
    try:
        size = max(row.checkpoints) if row.at_once else int(row.edit_batch_size)
        return batch_problems(find_editor(row.method.editor), size, row.method.args)
    except UserError as error:
        return [str(error)]


def _reachable(design: Design, row: Row) -> Row:
    """The row with the checkpoints for which there are facts, the others left out; as it was if there are for none."""
    plan, _ = draft(row_args(design, row, row.checkpoints[0]))
    if plan.facts is None:
        return row
    usable = len(plan.facts) - plan.settings.edit_offset
    beyond = {n: f"{plan.facts.source} has {usable} usable facts" for n in row.checkpoints if n > usable}
    kept = tuple(n for n in row.checkpoints if n not in beyond)
    return replace(row, checkpoints=kept, left_out=beyond) if kept else row


def _plans(
    design: Design,
    folder: SweepFolder,
    row: Row,
    about_schedule: tuple[str, ...],
    moments: dict[str, SecondMoments],
    problems: list[str],
) -> list[Schedule]:
    """The plans of a row's schedules; what is wrong with them joins `problems`, their second moments `moments`."""
    out = []
    for counts in row.schedules():
        args = row_args(design, row, counts[-1])
        plan, found = draft({**args, "edit_ledger": str(folder.ledger(row, counts))})
        problems += [f"{row.name}: {line}" for line in found]
        if not found:
            problems += _not_of_the_model(row, plan)
        if not found and about_schedule:
            problems += _problems(lambda args=args: editing_documents.check_tasks(about_schedule, args))
        if plan.second_moments is not None:  # gigabytes once in memory, and factorised: one object for all rows
            plan = replace(plan, second_moments=moments.setdefault(plan.second_moments.source, plan.second_moments))
        out.append(Schedule(counts, plan))
    return out


def _not_of_the_model(row: Row, plan: EditPlan) -> list[str]:
    """Options of a row's editor that are about loading the model, which is loaded once for all rows."""
    strange = [name for name in plan.model_options if name in row.method.args]
    return [
        f"editors: {row.method.label}: {name} is about loading the model; give it to models or model_args, where it "
        f"holds for every row"
        for name in strange
    ]
