"""What a sweep costs: its rows' edits, the cells of every row, the unedited model once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval_edit.cost.run import CHARACTERS_PER_TOKEN, Cost, estimate, known_tasks
from lm_eval_edit.cost.work import DEVICES, Device, Shape
from lm_eval_edit.sweep.design import Design, Model, Row


def row_operations(row: Row) -> list[int]:
    """The number of facts of every editing operation of a row, first to last."""
    operations = []
    for schedule in row.schedules():
        edits = max(schedule)
        size = edits if row.at_once else int(row.edit_batch_size)
        operations += [min(size, edits - start) for start in range(0, edits, size)]
    return operations


def sweep_cost(
    design: Design,
    shape_of: Callable[[Model, bool], Shape],
    options_of: Callable[[Row], Mapping[str, Any]],
    *,
    rows: Sequence[Row] | None = None,
    device: Device = DEVICES["h100"],
    weight_bytes_of: Callable[[Model], int] = lambda model: 2,
    second_moment_tokens: int = 0,
    characters_per_token: float = CHARACTERS_PER_TOKEN,
) -> tuple[Cost, list[str]]:
    """An estimate of a whole design, nothing of it being there yet.

    Args:
        design: The sweep.
        shape_of: The shape of one of its models, and whether its experts are edited where it has a shared one too.
        options_of: The hyper-parameters of a row's editor, as `Editor.describe` gives them.
        rows: Its rows with the checkpoints that they reach; all that the design names by default.
        device: What it runs on.
        weight_bytes_of: Bytes of one weight of one of its models: 2 for float16 and bfloat16, 4 for float32.
        second_moment_tokens: Tokens that E[k kᵀ] is collected from, once for each model and editor that needs it; 0 if
            it is there already.

    Returns:
        (the cost, what is left out of it: names of tasks whose size is not known).

    Raises:
        UserError: an editor that there is no estimate of.
    """
    tasks, unknown = known_tasks(design.tasks, design.limit)
    common: dict[str, Any] = {
        "tasks": tasks, "device": device, "batch_size": design.batch_size, "characters_per_token": characters_per_token,
    }  # fmt: skip
    total = Cost()
    shapes: dict[tuple[str, bool], Shape] = {}

    def shape(model: Model, routed: bool) -> Shape:
        if (model.label, routed) not in shapes:
            shapes[model.label, routed] = shape_of(model, routed)
        return shapes[model.label, routed]

    weight_bytes = {model.label: weight_bytes_of(model) for model in design.models}
    for model in design.models:  # the unedited model, on a row's load
        total += estimate(
            shape(model, False), evaluations=1, loads=0, weight_bytes=weight_bytes[model.label], **common
        )  # fmt: skip
    collected: set[tuple[str, str]] = set()
    for row in design.rows() if rows is None else rows:
        label = row.model.label
        known = (label, row.method.label)
        options = options_of(row)
        total += estimate(
            shape(row.model, options.get("edit_experts") == "routed"),
            weight_bytes=weight_bytes[label], evaluations=len(row.checkpoints),
            editor=row.method.editor, options=options, operations=row_operations(row),
            second_moment_tokens=0 if known in collected else second_moment_tokens, **common,
        )  # fmt: skip
        collected.add(known)
    return total, unknown
