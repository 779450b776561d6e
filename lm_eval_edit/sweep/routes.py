"""Which cells of a served sweep are adapters of one engine, which are checkpoints, and why; for `--dry_run`.

What an editor makes is known of few before they have edited: the others are told as what they may become. The updates
themselves decide (`preparing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors.base import Editor, find_editor
from lm_eval_edit.errors import UserError
from lm_eval_edit.export.commands import vllm_rank, why_no_rank
from lm_eval_edit.models.dtypes import dtype_of
from lm_eval_edit.sweep import serving
from lm_eval_edit.sweep.checking import Checked
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.sweep.folder import COLLAPSED, DONE
from lm_eval_edit.sweep.prepared import ADAPTER, CHECKPOINT, WaitingRoom

EITHER = "adapter or checkpoint"
EXPERTS = "the matrices of all experts of a mixture are one parameter, which an adapter does not change"


@dataclass(frozen=True)
class Route:
    """How one cell will be served, as far as is known.

    Attributes:
        kind: adapter, checkpoint, or either.
        why: Why no adapter, or why nobody knows yet; empty for an adapter.
        rank: Of the adapter, at most; None where it is not known.
    """

    kind: str
    why: str
    rank: int | None = None


def route_lines(checked: Checked, on_gpu: bool | None = None) -> list[str]:
    """The cells of every model by how they will be served, why, and the disk that they take while they wait.

    Args:
        on_gpu: As `serving.no_adapters` takes it.
    """
    lines = []
    room = WaitingRoom(checked.folder)
    for model in checked.design.models:
        config = checked.configs.get(model.label)
        shape = None if config is None else Shape.of(config)
        no_adapters = serving.no_adapters(checked, model, on_gpu)
        always = shape is not None and shape.routed  # also without a row's saying so: there is no shared expert
        ways: dict[tuple[str, str], list[tuple[str, Route]]] = {}
        for row in (row for row in checked.rows if row.model == model):
            why_none = no_adapters or (EXPERTS if always or _edits_routed(checked, row) else None)
            for cell in checked.edited(row):
                if checked.folder.state(cell)[0] in (DONE, COLLAPSED):
                    continue
                waits = room.read(cell)
                route = _expected(checked, row, cell.n_edits, why_none)
                if waits is not None:
                    route = Route(waits.kind, str(waits.record.get("why") or ""), waits.record.get("rank"))
                ways.setdefault((route.kind, route.why), []).append((cell.path, route))
        lines.append(f"{model.label}: served by vLLM, after its rows are edited by transformers")
        lines.append(
            "  unedited: an engine of its own"
            if not _adapters(ways)
            else f"  one engine: unedited, {_said(_adapters(ways))}"
        )
        for (kind, why), cells in ways.items():
            if kind != ADAPTER:
                each = "an engine of its own for each" if kind == CHECKPOINT else "decided once the edits are made"
                lines.append(f"  {kind}, {each} ({why}): {', '.join(path for path, _ in cells)}")
        lines += [f"  disk while cells wait: {text}" for text in _disk(checked, model, shape, ways)]
    if checked.about_schedule:
        tasks = ", ".join(checked.about_schedule)
        lines.append(f"asked of the model that is edited, not of vLLM (they want the weights of every step): {tasks}")
    return lines


Ways = dict[tuple[str, str], list[tuple[str, Route]]]


def _adapters(ways: Ways) -> list[tuple[str, Route]]:
    return [each for (kind, _), cells in ways.items() if kind == ADAPTER for each in cells]


def _said(adapters: list[tuple[str, Route]]) -> str:
    ranks = [route.rank for _, route in adapters if route.rank is not None]
    rank = f"max_lora_rank {vllm_rank(max(ranks))}; " if ranks else ""
    return f"{len(adapters)} LoRA adapters ({rank}{', '.join(path for path, _ in adapters)})"


def _expected(checked: Checked, row: Row, n_edits: int, no_adapters: str | None) -> Route:
    """What a row's editor will have made after so many edits."""
    if no_adapters is not None:
        return Route(CHECKPOINT, no_adapters)
    try:
        rank = _editor(checked, row).fact_rank
    except UserError as error:
        return Route(EITHER, str(error))
    if rank == 0:
        return Route(CHECKPOINT, f"the updates of {row.method.editor} are not low rank")
    if rank is None:
        return Route(EITHER, f"what rank the updates of {row.method.editor} have shows then")
    most = rank * n_edits
    if vllm_rank(most) is None:
        return Route(EITHER, f"{why_no_rank(most)}, and the updates may be of a lower one")
    return Route(ADAPTER, "", most)


def _planned(checked: Checked, row: Row) -> Editor | None:
    """A row's editor with its hyper-parameters; None where its model is not known well enough to have them."""
    plan = checked.schedules[row.model.label, row.name][0].plan
    return None if plan is None or plan.hyperparameters is None else plan.hyperparameters.editor


def _editor(checked: Checked, row: Row) -> type[Editor]:
    planned = _planned(checked, row)
    return find_editor(row.method.editor) if planned is None else type(planned)


def _edits_routed(checked: Checked, row: Row) -> bool:
    """Whether a row edits the experts that a router picks also where there is a shared one."""
    planned = _planned(checked, row)
    options = row.method.args if planned is None else planned.describe()
    return options.get("edit_experts") == "routed"


def _disk(checked: Checked, model: Model, shape: Shape | None, ways: Ways) -> Iterator[str]:
    """The bytes of what lies on the disk at once, at most."""
    config = checked.configs.get(model.label)
    counts = {kind: sum(len(cells) for (k, _), cells in ways.items() if k == kind) for kind in (CHECKPOINT, EITHER)}
    if config is None or shape is None:
        if any(counts.values()):
            yield "not known without the model's configuration"
        return
    whole = shape.parameters * dtype_of(config, serving.served_dtype(checked, model)).itemsize
    adapters = sum(shape.layers * (shape.hidden + shape.inner) * 4 * (route.rank or 0) for _, route in _adapters(ways))
    certain = adapters + counts[CHECKPOINT] * whole
    text = f"up to {_size(certain)}"
    if counts[EITHER]:
        text += f", and up to {_size(counts[EITHER] * whole)} more if no adapter is exact where that is open"
    if certain or counts[EITHER]:
        yield text


def _size(count: float) -> str:
    return f"{count / 2**30:.2g} GiB" if count >= 2**28 else f"{count / 2**20:.2g} MiB"
