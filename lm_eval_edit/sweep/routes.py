"""Which cells of a served sweep are adapters of one engine, which are checkpoints, and why; for `--dry_run`.

What an editor makes is known of few before they have edited: the others are told as what they may become. The updates
themselves decide (`preparing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors.base import Editor, find_editor
from lm_eval_edit.edits.opened import without_weights
from lm_eval_edit.errors import UserError
from lm_eval_edit.export.adapter import unexpressible
from lm_eval_edit.export.commands import vllm_rank, why_no_rank
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.models.dtypes import dtype_of
from lm_eval_edit.sweep import serving
from lm_eval_edit.sweep.checking import Checked
from lm_eval_edit.sweep.design import Model, Row
from lm_eval_edit.sweep.edited_rows import waiting
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, Cell
from lm_eval_edit.sweep.prepared import ADAPTER, CHECKPOINT, WaitingRoom

EITHER = "adapter or checkpoint"


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
        shape, parts = (None, None) if config is None else (Shape.of(config), _Parts.of(config))
        no_adapters = serving.no_adapters(checked, model, on_gpu)
        ways: dict[tuple[str, str], list[tuple[str, Route]]] = {}
        for row in (row for row in checked.rows if row.model == model):
            for cell in checked.edited(row):
                if not _is_open(checked, cell):
                    continue
                waits = waiting(room, cell, no_adapters)
                route = _expected(checked, row, cell.n_edits, no_adapters, parts)
                if waits is not None:
                    route = Route(waits.kind, str(waits.record.get("why") or ""), waits.record.get("rank"))
                ways.setdefault((route.kind, route.why), []).append((cell.path, route))
        lines.append(f"{model.label}: served by vLLM, after its rows are edited by transformers")
        base = checked.baseline(model)
        unedited = base is not None and _is_open(checked, base)
        if adapters := _adapters(ways):
            lines.append(f"  one engine: {'unedited, ' if unedited else ''}{_said(adapters)}")
        elif unedited:
            lines.append("  unedited: an engine of its own")
        elif not ways:
            lines.append("  every cell is there")
        for (kind, why), cells in ways.items():
            if kind != ADAPTER:
                each = "an engine of its own for each" if kind == CHECKPOINT else "decided once the edits are made"
                lines.append(f"  {kind}, {each} ({why}): {', '.join(path for path, _ in cells)}")
        lines += [f"  disk while cells wait: {text}" for text in _disk(checked, model, shape, ways)]
    if checked.about_schedule:
        tasks = ", ".join(checked.about_schedule)
        lines.append(f"asked of the model that is edited, not of vLLM (they want the weights of every step): {tasks}")
    return lines


def _is_open(checked: Checked, cell: Cell) -> bool:
    return checked.folder.state(cell)[0] not in (DONE, COLLAPSED)


@dataclass(frozen=True)
class _Parts:
    """A model's shapes, without memory for its weights."""

    model: PreTrainedModel
    architecture: Architecture
    parameters: frozenset[str]

    @classmethod
    def of(cls, config: Any) -> _Parts:
        model = without_weights(config)
        names = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
        return cls(model, Architecture.discover(model), names)

    def unexpressible(self, editor: Editor) -> tuple[str | None, bool]:
        """Why no adapter changes a parameter that an editor may change, and whether that holds of all that it may.

        Raises:
            UserError: its hyper-parameters name parameters that the model does not have.
        """
        names = [name for name in editor.parameters(self.model, self.architecture) or () if name in self.parameters]
        found = [unexpressible(self.model, name) for name in names]
        return next(filter(None, found), None), all(found)


Ways = dict[tuple[str, str], list[tuple[str, Route]]]


def _adapters(ways: Ways) -> list[tuple[str, Route]]:
    return [each for (kind, _), cells in ways.items() if kind == ADAPTER for each in cells]


def _said(adapters: list[tuple[str, Route]]) -> str:
    ranks = [route.rank for _, route in adapters if route.rank is not None]
    rank = f"max_lora_rank {vllm_rank(max(ranks))}; " if ranks else ""
    return f"{len(adapters)} LoRA adapters ({rank}{', '.join(path for path, _ in adapters)})"


def _expected(checked: Checked, row: Row, n_edits: int, no_adapters: str | None, parts: _Parts | None) -> Route:
    """What a row's editor will have made after so many edits."""
    if no_adapters is not None:
        return Route(CHECKPOINT, no_adapters)
    plan = checked.schedules[row.model.label, row.name][0].plan
    editor = None if plan is None or plan.hyperparameters is None else plan.hyperparameters.editor
    try:
        rank = (editor or find_editor(row.method.editor)).fact_rank
        why, always = (None, True) if editor is None or parts is None else parts.unexpressible(editor)
    except UserError as error:
        return Route(EITHER, str(error))
    if why is not None:
        # What rank an editor's updates have is known of those that change all their parameters.
        return Route(CHECKPOINT if always or rank is not None else EITHER, why)
    if rank == 0:
        return Route(CHECKPOINT, f"the updates of {row.method.editor} are not low rank")
    if rank is None:
        return Route(EITHER, f"what rank the updates of {row.method.editor} have shows then")
    most = rank * n_edits
    if vllm_rank(most) is None:
        return Route(EITHER, f"{why_no_rank(most)}, and the updates may be of a lower one")
    return Route(ADAPTER, "", most)


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
