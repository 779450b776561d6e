"""Whether the tasks ask about the very facts that the model was edited with.

Tasks are given the model's arguments and `--metadata` over them; the model is given its own arguments alone. An
`n_edits`, `edit_dataset` or `data_dir` in `--metadata` would then ask about other facts than were edited, unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api.instance import Instance

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Facts
from lm_eval_edit.settings import EditSettings
from lm_eval_edit.tasklib.editing.tasks import Asked, AskedSchedule

_COMPARED = ("editor", "edit_batch_size", "edit_seed", "edit_offset", "edit_chat_template")


def check_asked(requests: Sequence[Instance], model: EditSettings, facts: Facts | None, n_edits: int) -> None:
    """Compare the schedule that requests of `edithurt_editing` ask about with the model's.

    Args:
        requests: Of any tasks.
        model: The options of edits that the model was given.
        facts: What it is edited with; None for editor=none.
        n_edits: How many facts the weights carry now. Unedited ones may be asked about any facts with editor=none.

    Raises:
        UserError: naming every argument, or the facts, in which they differ.
    """
    schedules: dict[int, AskedSchedule] = {}
    last: dict[int, int] = {}
    for request in requests:
        if isinstance(request, Asked) and request.schedule is not None:
            key = id(request.schedule)
            schedules[key] = request.schedule
            last[key] = max(last.get(key, 0), request.doc["edit"])
    for key, schedule in schedules.items():
        if schedule.settings.editor == "none" and n_edits == 0:
            continue
        found = _differences(schedule, model, facts, last[key])
        if found:
            raise UserError(
                f"the tasks about the run's facts ask about other edits than the model carries: {'; '.join(found)}. "
                f"Give options of edits, and data_dir where the facts come from it, as --model_args and not as "
                f"--metadata, which the model does not see; from Python, give the task manager's metadata the model's "
                f"arguments"
            )


def _differences(schedule: AskedSchedule, model: EditSettings, facts: Facts | None, last: int) -> list[str]:
    tasks = schedule.settings
    found = [
        f"{name}={getattr(tasks, name)} in the tasks, {getattr(model, name)} in the model"
        for name in _COMPARED
        if getattr(tasks, name) != getattr(model, name)
    ]
    if facts is not None and schedule.sha256 != facts.sha256:
        found.append(f"the facts are of {schedule.source} in the tasks, of {facts.source} in the model")
    if last >= model.n_edits:
        found.append(f"n_edits={tasks.n_edits} in the tasks, {model.n_edits} in the model")
    return found
