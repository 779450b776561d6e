"""All rows edited as Ray tasks, then served by vLLM: a model at a time, one actor with an engine on each node.

A model's cells wait in the sweep's folder (`prepared`) before any actor starts, so that a GPU is edited on and served
from in turn. An actor that is free is given the next cell; of one that is lost, the cell goes to another.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.harness.left_over import end_all_left_over, end_left_over
from lm_eval_edit.sweep import ray_actors, serving
from lm_eval_edit.sweep.checking import Checked
from lm_eval_edit.sweep.design import Model
from lm_eval_edit.sweep.edited_rows import waiting
from lm_eval_edit.sweep.engine import Outcome
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, FAILED, Cell
from lm_eval_edit.sweep.prepared import CHECKPOINT, Prepared, WaitingRoom
from lm_eval_edit.sweep.ray_engine import RETRIES, Resources, Tasks, begun_with_ray, nodes_for
from lm_eval_edit.sweep.ray_tasks import Answer
from lm_eval_edit.sweep.served_cells import adapters_of
from lm_eval_edit.sweep.serving import Serving

logger = logging.getLogger("lm_eval_edit")

_FAREWELL = 60  # seconds that an actor has to end its engine
_LAG = 60.0  # seconds after which a network file system shows what another machine has written, where it was not before


def run_sweep(checked: Checked, resources: Resources, how: Serving, *, progress: bool = True) -> Outcome:
    """Compute every missing cell with Ray and vLLM.

    Args:
        resources: Of each editing task and, with at least the GPUs that the model is split over, of each actor.
        how: The engine's arguments.

    Returns:
        What was done; `loads` counts the models loaded for editing and the engines, over all workers.

    Raises:
        UserError: no Ray, no such cluster, a task or an actor that fits no node.
        CannotWriteError: the folder cannot be written.
    """
    with begun_with_ray(checked, resources, progress) as run:
        room = WaitingRoom(checked.folder)
        end_left_over(room.root)
        end_all_left_over(room.engines)
        room.begin(checked.cells(), run.todo)
        if run.todo:
            with run.tasks() as (ray, bar):
                _Run(ray, checked, resources, run.outcome, bar, how, room).run(run.todo)
        room.tidy()
        end_all_left_over(room.engines)
    return run.outcome


class _Run(Tasks):
    """Edits and serves one model after another."""

    def __init__(
        self,
        ray: Any,
        checked: Checked,
        resources: Resources,
        outcome: Outcome,
        bar: tqdm,
        how: Serving,
        room: WaitingRoom,
    ):
        super().__init__(ray, checked, resources, outcome, bar)
        self.how, self.room = how, room
        gpus = self.options["num_gpus"]
        self.gpus = max(gpus, serving.gpus_of(how.arguments)) if gpus else 0
        self.nodes()

    def nodes(self) -> list[str]:
        """Where an actor finds room.

        Raises:
            UserError: nowhere.
        """
        return nodes_for(self.ray, self.options["num_cpus"], self.gpus, "an engine of vLLM")

    def run(self, todo: Sequence[Cell]) -> None:
        """Compute these cells."""
        for model in self.checked.design.models:
            cells = [cell for cell in todo if cell.model == model.label]
            if cells:
                no_adapters = serving.no_adapters(self.checked, model, on_gpu=self.gpus > 0)
                self._prepare(model, cells, no_adapters)
                self._serve(model, cells, no_adapters)

    def _prepare(self, model: Model, cells: Sequence[Cell], no_adapters: str | None) -> None:
        self.bar.set_postfix_str(f"editing {model.label}")
        lacking = [cell for cell in cells if waiting(self.room, cell, no_adapters) is None]
        parts = [[cell] for cell in lacking if cell.row is None]
        for (label, name), schedules in self.checked.schedules.items():
            mine = [c for c in lacking if c.row is not None and (c.model, c.row.name) == (label, name)]
            edited = [[cell for cell in mine if cell.n_edits in schedule.checkpoints] for schedule in schedules]
            first, *others = [part for part in edited if part] or [[]]
            # A row's own facts are asked by a task that edits the row: on a GPU every task loads the model anew.
            parts += [[cell for cell in mine if cell.n_edits == 0] + first, *others]
        for part in filter(None, parts):
            self.submit(partial(self._prepared, part, no_adapters), ray_actors.prepare, model.label, no_adapters, part)
        self.wait()

    def _prepared(self, cells: Sequence[Cell], no_adapters: str | None, answer: Answer) -> None:
        """An editing task is done: its cells wait, but for those whose end has come."""
        for cell in cells:
            if answer.error is None and cell.path in answer.value:
                self.done(cell, answer.value[cell.path])
            elif (status := self.checked.folder.state(cell)[0]) in (DONE, COLLAPSED):  # then the worker was lost
                self.done(cell, str(status))
            elif answer.error is not None and waiting(self.room, cell, no_adapters) is None:
                self.finish(cell, answer)

    def _serve(self, model: Model, cells: Sequence[Cell], no_adapters: str | None) -> None:
        wait, until = [], time.monotonic() + _LAG
        for cell in (cell for cell in cells if cell.path not in self.outcome.statuses):
            while (found := waiting(self.room, cell, no_adapters)) is None and time.monotonic() < until:
                time.sleep(1)
            if found is not None:
                wait.append(found)
            else:
                why = f"a worker has edited it and it is not seen to wait in {self.room.root}; do all nodes share it?"
                self.mark(cell, FAILED, why)
        if wait:
            self.bar.set_postfix_str(f"vLLM for {model.label}")
            _Engines(self, model, wait).run()


@dataclass(eq=False)
class _Actor:
    """An actor of a model.

    Attributes:
        node: The id of its node.
        handle: As Ray has it.
        losses: How many before it were lost on that node.
        refuses: Why it cannot start the engine of the unedited weights.
    """

    node: str
    handle: Any
    losses: int = 0
    refuses: str | None = None


class _Engines:
    """The actors of one model, and the cells that wait for them."""

    def __init__(self, run: _Run, model: Model, wait: Sequence[Prepared]):
        self.run_, self.ray, self.model = run, run.ray, model
        self.together = deque(each for each in wait if each.kind != CHECKPOINT)
        self.alone = deque(each for each in wait if each.kind == CHECKPOINT)
        self.adapters = adapters_of(self.together)
        self.actors: list[_Actor] = []
        self.idle: list[_Actor] = []
        self.pending: dict[Any, tuple[_Actor, Prepared | None]] = {}
        self.losses: Counter[str] = Counter()
        self.why = "no node has room for an engine of vLLM any more"

    def run(self) -> None:
        """Have every cell served, or marked."""
        try:
            try:
                nodes = self.run_.nodes()
            except UserError as error:  # the cluster has shrunk since
                nodes, self.why = [], str(error)
            for node in nodes[: len(self.together) + len(self.alone)]:
                self._start(node)
            while self.pending:
                (first, *_), _ = self.ray.wait(list(self.pending), num_returns=1)
                self._take(first, *self.pending.pop(first))
                self._feed()
        finally:
            self._end(self.actors)
        for each in (*self.together, *self.alone):
            self.run_.mark(each.cell, FAILED, self.why)

    def _start(self, node: str, losses: int = 0) -> None:
        options = ray_actors.actor_options(self.run_.options, self.run_.gpus, node)
        make = self.ray.remote(**options)(ray_actors.EngineActor)
        actor = _Actor(node, make.remote(self.run_.job, self.run_.how, self.model.label, node), losses)
        self.actors.append(actor)
        self.pending[actor.handle.ready.remote()] = (actor, None)

    def _feed(self) -> None:
        """Give every actor that is free the next cell that it can serve."""
        for actor in list(self.idle):
            queue = self.together if self.together and actor.refuses is None else self.alone
            if queue:
                each = queue.popleft()
                self.idle.remove(actor)
                self.pending[actor.handle.serve.remote(each.cell, self.adapters)] = (actor, each)

    def _take(self, reference: Any, actor: _Actor, each: Prepared | None) -> None:
        """Take what an actor has to say of a cell, or of itself."""
        try:
            answer = self.ray.get(reference)
        except Exception as error:  # the actor is lost, with its node or without
            self._lost(actor, each, in_one_line(error))
            return
        self.run_.counted(answer)
        if each is None and answer.error is not None:
            logger.error("no engine of vLLM on node %s\n%s", actor.node, answer.details)
            self.why = answer.error
            self.actors.remove(actor)
            self._end([actor])
            return
        self.idle.append(actor)
        if each is None:
            return
        if answer.value == ray_actors.NO_ENGINE and each.kind != CHECKPOINT:
            # As good as every cell of this engine: another node may be able to, and others still have checkpoints.
            logger.error("vLLM for %s could not be used on node %s\n%s", self.model.label, actor.node, answer.details)
            actor.refuses = self.why = str(answer.error)
            self.together.appendleft(each)
        elif answer.value == ray_actors.LOST:
            logger.warning("an engine of vLLM on node %s is lost\n%s", actor.node, answer.details)
            self._again(each, str(answer.error))
        else:
            self.run_.finish(each.cell, answer)

    def _lost(self, actor: _Actor, each: Prepared | None, why: str) -> None:
        logger.warning("an actor of vLLM on node %s is lost: %s", actor.node, why)
        self.why = why
        self.actors.remove(actor)
        if each is not None:
            self._again(each, why)
        if actor.losses < RETRIES and actor.node in [n["NodeID"] for n in self.ray.nodes() if n["Alive"]]:
            self._start(actor.node, actor.losses + 1)

    def _again(self, each: Prepared, why: str) -> None:
        """What served a cell is lost: it waits for another try, unless it has had enough of them."""
        self.losses[each.cell.path] += 1
        if self.losses[each.cell.path] > RETRIES:
            self.run_.mark(each.cell, FAILED, why)
        else:
            (self.alone if each.kind == CHECKPOINT else self.together).appendleft(each)

    def _end(self, actors: Sequence[_Actor]) -> None:
        """Have actors end their engines, then end them."""
        closing = [actor.handle.close.remote() for actor in actors]
        if closing:
            with contextlib.suppress(Exception):
                self.ray.wait(closing, num_returns=len(closing), timeout=_FAREWELL)
        for actor in actors:
            with contextlib.suppress(Exception):
                self.ray.kill(actor.handle)
