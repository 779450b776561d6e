"""What Ray workers do for a sweep that vLLM serves: edit rows until their cells wait, and be the actor of an engine.

`ray_serving` hands both out. What waits lies in the sweep's folder, which every node sees; only names of cells travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.harness import served
from lm_eval_edit.harness.left_over import end_all_left_over
from lm_eval_edit.sweep import ray_tasks, serving
from lm_eval_edit.sweep.checking import Checked
from lm_eval_edit.sweep.design import Model
from lm_eval_edit.sweep.edited_rows import EditedRows
from lm_eval_edit.sweep.engine import EngineLostError
from lm_eval_edit.sweep.folder import COLLAPSED, DONE, Cell
from lm_eval_edit.sweep.prepared import CHECKPOINT, WaitingRoom
from lm_eval_edit.sweep.preparing import Preparer
from lm_eval_edit.sweep.ray_tasks import Answer, Job
from lm_eval_edit.sweep.served_cells import Server
from lm_eval_edit.sweep.serving import Serving

NO_ENGINE, LOST = "no engine", "engine lost"


def prepare(job: Job, label: str, no_adapters: str | None, cells: Sequence[Cell]) -> Answer:
    """Edit until these cells wait: those of one schedule, maybe with the row's before its edits, or the base alone.

    Args:
        label: The model's.
        no_adapters: Why no adapter of the model can be served; None where adapters can.

    Returns:
        The path and status of each cell that does not wait, as its end has come.
    """

    def make(checked: Checked, model: Model, device: str) -> Preparer:
        return Preparer(checked, model, device, WaitingRoom(checked.folder), no_adapters)

    def through(preparer: Preparer) -> dict[str, str]:
        ended: dict[str, str] = {}
        rows = EditedRows(preparer, lambda cell, status: ended.update({cell.path: status}))
        # A worker that was lost may have let some of them wait, or computed them.
        open_cells = [cell for cell in cells if preparer.checked.folder.state(cell)[0] not in (DONE, COLLAPSED)]
        for cell in open_cells:
            if cell.n_edits == 0:
                rows.without_edits(cell)
        lacking = [cell for cell in open_cells if cell.n_edits and rows.waiting(cell) is None]
        if lacking and (row := lacking[0].row) is not None:
            rows.edit(row, lacking)
        return ended

    return ray_tasks.answer(job, label, through, make)


class EngineActor:
    """One engine of a model at a time, on the node that Ray has put it on.

    Args:
        job: What all of this run have in common.
        how: The engine's arguments.
        label: The model's.
        name: Of the node; no other actor of this run is there.
    """

    def __init__(self, job: Job, how: Serving, label: str, name: str):
        self.job, self.how, self.label, self.name = job, how, label, name
        self.server: Server | None = None
        self.serves: str | None = None

    def ready(self) -> Answer:
        """Look whether this node can serve at all."""
        try:
            ray_tasks.release()  # Ray may have made an actor of a worker that has edited
            checked = ray_tasks.checked_here(self.job)
            how = replace(self.how, version=served.vllm_version())
            room = WaitingRoom(checked.folder)
            mine = f"{self.job.run}-{self.name}"
            # Other nodes' actors of this run, maybe on this machine, are at work; an earlier one of this node is lost.
            end_all_left_over(room.engines, lambda name: name.startswith(self.job.run) and name != mine)
            model = next(model for model in checked.design.models if model.label == self.label)
            self.server = Server(checked, model, how, room, room.engines / mine)
        except Exception as error:
            return ray_tasks.failed(error)
        return Answer()

    def serve(self, cell: Cell, adapters: served.Adapters | None) -> Answer:
        """Evaluate a cell that waits and store it. Returns its status, or `NO_ENGINE` or `LOST` with the reason.

        A lost engine is ended; the next cell has another one started.

        Args:
            adapters: What an engine for the unedited weights must have room for.
        """
        server, loads = self.server, 0
        assert server is not None, "an actor is asked once it is ready"
        try:
            each = server.room.read(cell)
            if each is None:
                raise UserError(f"{cell.path} does not wait in {server.room.root}, as this node sees it")
            alone = each.kind == CHECKPOINT
            wanted = str(each.weights) if alone else serving.pretrained(server.checked, server.model)
            if wanted != self.serves:
                self.close()
                try:
                    server.start(wanted, each.dtype, None if alone else adapters)
                except Exception as error:
                    return replace(ray_tasks.failed(error), value=NO_ENGINE, error=f"vLLM: {in_one_line(error)}")
                self.serves, loads = wanted, 1
            return Answer(server.serve(each), loads)
        except EngineLostError as error:
            self.close()
            return replace(ray_tasks.failed(error, loads), value=LOST, error=str(error))
        except Exception as error:
            return ray_tasks.failed(error, loads)

    def close(self) -> None:
        """End the engine."""
        self.serves = None
        if self.server is not None:
            self.server.stop()


def actor_options(options: dict[str, Any], gpus: float, node: str) -> dict[str, Any]:
    """What an actor needs, as Ray takes it: to be on one node, with its GPUs to itself.

    Args:
        options: Of the tasks.
        node: The id of the node.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return {"num_cpus": options["num_cpus"], "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": where}
