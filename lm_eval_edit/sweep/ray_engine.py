"""All rows of a sweep as Ray tasks, on this machine or a cluster; what is stored is what `engine` stores.

An editing task brings a model through a schedule's checkpoints, which writes the schedule's ledger; once it is done,
each checkpoint is a task of its own that replays the ledger and evaluates. So no two processes write one ledger, a cell
may be evaluated by another worker than the one that edited, and Ray's repeating a lost worker's task repeats one cell,
or goes on with a ledger. Where tasks run and which are repeated is left to Ray.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lm_eval_edit.errors import CannotWriteError, UserError, in_one_line
from lm_eval_edit.sweep import ray_tasks
from lm_eval_edit.sweep.checking import Checked, Schedule
from lm_eval_edit.sweep.engine import Outcome, begun, collapsed_before
from lm_eval_edit.sweep.folder import COLLAPSED, FAILED, Cell
from lm_eval_edit.sweep.worker import mark

logger = logging.getLogger("lm_eval_edit")

RETRIES = 3  # of a task whose worker is lost, as Ray's own default; an error in the task itself is not tried again
OBJECT_STORE = 128 * 2**20  # bytes; nothing large travels, and containers have little shared memory


@dataclass(frozen=True)
class Resources:
    """What one task of a sweep needs, and where Ray is.

    Attributes:
        address: Of a Ray cluster; None starts one on this machine, for this run.
        gpus: Of each task; None for one where the cluster has any and the device is not the CPU.
        cpus: Of each task; None for 1 beside a GPU, else as many as torch has threads here.
        device: As `--device`.
    """

    address: str | None = None
    gpus: float | None = None
    cpus: float | None = None
    device: str | None = None


def find_ray() -> Any:
    """The module `ray`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"--engine ray needs Ray, which is not installed ({error}): pip install 'lm-eval-edit[ray]'; "
            "or leave --engine away to run the sweep in this process"
        ) from error
    return ray


def check_resources(resources: Resources) -> None:
    """Check what can be known without Ray.

    Raises:
        UserError: a device that Ray is to choose, a number that is negative.
    """
    device, gpus = resources.device, resources.gpus
    if device is not None and device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} with --engine ray: Ray gives each task its GPUs; give cpu or cuda")
    for flag, value in (("gpus_per_task", gpus), ("cpus_per_task", resources.cpus)):
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"--{flag} {value:g}: give a number of at least 0")
    if gpus is not None and device is not None and (device == "cuda") != (gpus > 0):
        raise UserError(f"--device {device} and --gpus_per_task {gpus:g} contradict each other; leave one of them away")


def run_sweep(checked: Checked, resources: Resources, *, progress: bool = True) -> Outcome:
    """Compute every missing cell with Ray.

    Returns:
        What was done, as the engine of this process tells it; `loads` counts over all workers.

    Raises:
        UserError: no Ray, no such cluster, a task that fits no node, or a folder that cannot be written.
    """
    with begun_with_ray(checked, resources, progress) as run:
        if run.todo:
            with run.tasks() as (ray, bar):
                _Run(ray, checked, resources, run.outcome, bar).run(run.todo)
    return run.outcome


@dataclass(frozen=True)
class Begun:
    """A run of a sweep with Ray.

    Attributes:
        todo: The cells to compute.
        outcome: What is told of them.
    """

    ray: Any
    resources: Resources
    progress: bool
    todo: list[Cell]
    outcome: Outcome

    @contextmanager
    def tasks(self) -> Iterator[tuple[Any, tqdm]]:
        """Ray, connected, and the bar of the cells."""
        with (
            connected(self.ray, self.resources.address),
            tqdm(total=len(self.todo), desc="cells", unit="cell", disable=not self.progress) as bar,
        ):
            yield self.ray, bar


@contextmanager
def begun_with_ray(checked: Checked, resources: Resources, progress: bool) -> Iterator[Begun]:
    """As `engine.begun`, where there is a Ray.

    Raises:
        UserError: no Ray, resources that it cannot give, or another process writes the folder.
        CannotWriteError: the folder cannot be written.
    """
    ray = find_ray()
    check_resources(resources)
    with begun(checked) as (todo, outcome):
        yield Begun(ray, resources, progress, todo, outcome)


@contextmanager
def connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to Ray; what is begun here is ended here."""
    if ray.is_initialized():
        yield
        return
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray of ours reports to nobody unless told to
        os.environ.setdefault("RAY_worker_niceness", "0")  # at its 15, beside other work, a sweep hardly moves
    own = {"object_store_memory": OBJECT_STORE, "include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "on this machine" if address is None else f"at --address {address}"
        raise UserError(f"there is no Ray {where}: {in_one_line(error)}. `ray status` tells about a cluster") from error
    try:
        yield
    finally:
        ray.shutdown()


def nodes_for(ray: Any, cpus: float, gpus: float, what: str = "a task") -> list[str]:
    """The ids of the nodes that have room for a task or an actor.

    Raises:
        UserError: there is none.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    fit = [n for n in alive if n["Resources"].get("CPU", 0) >= cpus and n["Resources"].get("GPU", 0) >= gpus]
    if not fit:
        there = [node["Resources"] for node in alive]
        sizes = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in there)
        raise UserError(
            f"{what} that needs {cpus:g} CPUs and {gpus:g} GPUs fits no node ({sizes}); "
            "give smaller --cpus_per_task, --gpus_per_task"
        )
    return [node["NodeID"] for node in fit]


class Tasks:
    """The tasks of one run: hands them out, takes what comes back.

    Attributes:
        options: What each task needs, as Ray takes it.
        job: What all tasks have in common, as a Ray object.
    """

    def __init__(self, ray: Any, checked: Checked, resources: Resources, outcome: Outcome, bar: tqdm):
        self.ray, self.checked, self.outcome, self.bar = ray, checked, outcome, bar
        self.pending: dict[Any, Callable[[ray_tasks.Answer], None]] = {}
        there = ray.cluster_resources()
        gpus, cpus = resources.gpus, resources.cpus
        if gpus is None:
            gpus = 1 if resources.device != "cpu" and (resources.device == "cuda" or there.get("GPU")) else 0
        threads = torch.get_num_threads()
        if cpus is None:
            cpus = 1 if gpus else min(threads, max(1, int(there.get("CPU", 1))))
        nodes_for(ray, cpus, gpus)
        self.options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
        device = resources.device or ("cuda" if gpus else "cpu")
        root = str(Path(checked.folder.root).resolve())
        job = ray_tasks.Job(uuid.uuid4().hex, checked.design, root, os.getcwd(), device, threads)
        self.job = ray.put(job)

    def submit(self, take: Callable[[ray_tasks.Answer], None], function: Callable, *args: Any) -> None:
        """Hand out a task; `take` is given its answer."""
        task = self.ray.remote(**self.options)(function)
        self.pending[task.remote(self.job, *args)] = take

    def wait(self) -> None:
        """Take answers until no task is left, those of tasks that answers have led to among them.

        Raises:
            CannotWriteError: the folder cannot be written.
        """
        while self.pending:
            (first, *_), _ = self.ray.wait(list(self.pending), num_returns=1)
            take = self.pending.pop(first)
            try:
                answer = self.ray.get(first)
            except Exception as error:  # Ray gave up on it: the worker was lost again and again
                answer = ray_tasks.Answer(error=in_one_line(error), details=str(error))
            take(self.counted(answer))

    def counted(self, answer: ray_tasks.Answer) -> ray_tasks.Answer:
        """An answer, what it has loaded being counted.

        Raises:
            CannotWriteError: nothing that follows could be kept.
        """
        if answer.fatal:
            assert answer.error is not None, "what is fatal is an error"
            raise CannotWriteError(answer.error.partition(": ")[2])
        self.outcome.loads += answer.loads
        return answer

    def finish(self, cell: Cell, answer: ray_tasks.Answer) -> None:
        """A task has computed a cell, or failed to."""
        if answer.error is None:
            self.done(cell, answer.value)
        else:
            logger.error("%s failed\n%s", cell.path, answer.details)
            self.mark(cell, FAILED, answer.error)

    def mark(self, cell: Cell, status: str, reason: str) -> None:
        """Store a cell without figures."""
        mark(self.checked, cell, status, reason)
        self.done(cell, status)

    def done(self, cell: Cell, status: str) -> None:
        """A cell has come to its end."""
        self.outcome.statuses[cell.path] = status
        self.bar.update()


class _Run(Tasks):
    """Edits, then evaluates what they have reached."""

    def run(self, todo: list[Cell]) -> None:
        """Compute these cells."""
        for cell in todo:
            if cell.n_edits == 0:
                self.submit(partial(self.finish, cell), ray_tasks.evaluate, cell)
        for (label, name), schedules in self.checked.schedules.items():
            edited = [cell for cell in todo if cell.n_edits]
            cells = [c for c in edited if c.row is not None and (c.model, c.row.name) == (label, name)]
            for schedule in schedules:
                if mine := [cell for cell in cells if cell.n_edits in schedule.checkpoints]:
                    self._edit(schedule, mine)
        self.wait()

    def _edit(self, schedule: Schedule, cells: list[Cell]) -> None:
        row = cells[0].row
        assert row is not None, "edited cells are of a row, and these are all of one"
        wanted = []
        for cell in cells:
            if reason := collapsed_before(self.checked, row, cell.n_edits):
                self.mark(cell, COLLAPSED, reason)
            else:
                wanted.append(cell)
        if wanted:
            numbers = [cell.n_edits for cell in wanted]
            take = partial(self._edited, schedule, wanted)
            self.submit(take, ray_tasks.edit, row.model.label, row.name, schedule.checkpoints, numbers)

    def _edited(self, schedule: Schedule, cells: list[Cell], answer: ray_tasks.Answer) -> None:
        """An editing task is done: evaluate what it reached; what lies beyond a collapse is marked."""
        reached, collapsed = dict(answer.value or ()), None
        for cell in cells:
            if collapsed is not None:
                self.mark(cell, COLLAPSED, collapsed)
            elif answer.error is not None:
                self.finish(cell, answer)
            elif isinstance(at := reached[cell.n_edits], str):
                self.mark(cell, FAILED, at)
            else:
                collapsed = at.collapsed
                if at.unreached is not None:
                    self.mark(cell, COLLAPSED, at.unreached)
                else:
                    self.submit(partial(self.finish, cell), ray_tasks.evaluate, cell, schedule.checkpoints, at)
