"""Data parallel: every process holds a whole model, the first one edits, all get the same weights.

    accelerate launch --num_processes 8 -m lm_eval --model edited_hf ...

The first process (rank 0) computes the operations and alone reads and writes the ledger's folder. The others are sent
facts, records and deltas, one operation at a time, apply them, and every parameter's bits are compared across all
processes before anything is evaluated. An error on one process is raised on all of them, so that none waits for ever.

Each process has documents of its own, and each may ask for a state of the weights of its own (`states`). So all keep
the deltas, in main memory where there is no folder to read them from, and can make the editor's last correction.

Everything travels through gloo, also between GPUs: deltas come from the disk or go there anyhow, processes that wait
for an edit do not keep their GPU busy, and the machine without a GPU that runs the tests runs the same code.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lm_eval_edit.editors.base import Editor
from lm_eval_edit.edits.guards import EditError, NotFiniteError
from lm_eval_edit.edits.ledger import Ledger
from lm_eval_edit.edits.operations import Operation
from lm_eval_edit.edits.run import EditRun
from lm_eval_edit.errors import UserError
from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.delta_files import flatten_deltas, unflatten_deltas
from lm_eval_edit.weights.edited import EditedWeights
from lm_eval_edit.weights.fingerprint import parameter_hashes

_PATIENCE = timedelta(weeks=52)  # others wait while the first edits; the harness gives its own group the same time
_NAMED = 3  # differing parameters that an error names

T = TypeVar("T")


def launched_together() -> bool:
    """Whether a launcher started several processes, which are given their devices."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def join_processes() -> None:
    """Connect the processes of a launcher on a machine without an accelerator; elsewhere the harness does it.

    There `accelerate` leaves processes alone with themselves unless it is told to use the CPU, and each would take
    itself for the first.
    """
    if launched_together() and not torch.accelerator.is_available():
        from accelerate import PartialState

        PartialState(cpu=True, timeout=_PATIENCE)


def _part(group: dist.ProcessGroup | None) -> None:
    """End the threads of a gloo group (None: the launch's own) before the interpreter ends.

    One that still holds a Python object then asks for the interpreter's lock, is unwound and aborts the process, after
    all its work: two of a hundred launches ended so, and a launcher takes the others down with it.
    """
    if dist.is_initialized():
        dist.destroy_process_group(group)


class Processes:
    """The processes of one launch. Every method is called by all of them, in the same order.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=_PATIENCE)
        atexit.register(_part, self._group)

    @classmethod
    def connected(cls) -> Processes | None:
        """Those of this launch; None where there is only one."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return cls() if several else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        dist.barrier(group=self._group)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first process, which alone calls it; its error is raised on all of them.

        Raises:
            UserError: of the first process's own class where it raised one.
            RuntimeError: it raised anything else.
        """
        sent: list[Any] = [None]
        failure: Exception | None = None
        if self.is_first:
            try:
                sent = [(make(), None)]
            except Exception as error:
                failure, sent = error, [(None, _portable(error))]
        dist.broadcast_object_list(sent, src=0, group=self._group)
        value: T
        value, told = sent[0]
        if told is not None:
            raise failure or told
        return value

    def tensors_from_first(self, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors `make` returns on the first process, there as they are, elsewhere with the same bits on the CPU.

        Raises:
            As `from_first`.
        """
        own: dict[str, Tensor] = {}

        def describe() -> list[tuple[str, torch.Size, torch.dtype]]:
            own.update(make())
            return [(name, tensor.shape, tensor.dtype) for name, tensor in own.items()]

        described = self.from_first(describe)
        for name, shape, dtype in described:
            tensor = own[name].detach().cpu().contiguous() if self.is_first else torch.empty(shape, dtype=dtype)
            if tensor.numel():
                dist.broadcast(tensor.flatten().view(torch.uint8), src=0, group=self._group)
            own.setdefault(name, tensor)
        return own

    def check_same_weights(self, model: nn.Module, failure: Exception | None = None) -> None:
        """Compare every parameter of every process with the first one's.

        Args:
            model: This process's.
            failure: What kept this process from bringing its model to the state that the others have.

        Raises:
            EditError: a parameter differs (it is named, with the process), or a process failed; raised on all.
        """
        told = None if failure is None else f"{type(failure).__name__}: {failure}"
        states: list[Any] = [None] * self.size
        dist.all_gather_object(states, (told, None if told else parameter_hashes(model)), group=self._group)
        failed = [f"process {rank} failed: {what}" for rank, (what, _) in enumerate(states) if what]
        if failed:
            raise EditError("; ".join(failed)) from failure
        first = states[0][1]
        problems = []
        for rank, (_, sums) in enumerate(states):
            names = [name for name in dict.fromkeys([*first, *sums]) if first.get(name) != sums.get(name)]
            if names:
                more = f" and {len(names) - _NAMED} more parameters" if len(names) > _NAMED else ""
                problems.append(f"process {rank} has other values than process 0 in {', '.join(names[:_NAMED])}{more}")
        if problems:
            raise EditError(
                f"{self.size} processes should evaluate one and the same model: {'; '.join(problems)}. Every process "
                f"must load the same checkpoint in the same dtype, on devices of the same kind (others round "
                f"differently)"
            )


def _portable(error: Exception) -> Exception:
    """An error as the other processes raise it: without its traceback, of a class they can be sure to have."""
    if isinstance(error, UserError):
        kind = next(kind for kind in (NotFiniteError, EditError, UserError) if isinstance(error, kind))
        return kind(str(error))
    return RuntimeError(f"the first process failed: {type(error).__name__}: {error}")


@dataclass
class SharedRun:
    """An `EditRun` of the first process that all processes follow.

    Attributes:
        processes: Who takes part.
        model: This process's.
        ledger: The operations: on the first process the run's own, elsewhere their facts and records, and the deltas of
            those that `edit_to` has come to.
        run: The first process's; None elsewhere.
        length: Operations in the schedule.
        told: How many of them the others know, with their facts and records.
    """

    processes: Processes
    model: nn.Module
    ledger: Ledger
    run: EditRun | None
    length: int
    told: int = 0

    @classmethod
    def begin(cls, processes: Processes, model: nn.Module, editor: Editor, begin: Callable[[], EditRun]) -> SharedRun:
        """Let the first process `begin` a run of `editor`.

        Raises:
            As `begin`, on all processes.
        """
        runs: list[EditRun] = []
        processes.wait()  # whoever still looks at the ledger's folder for its plan has done so

        def start() -> tuple[dict[str, Any], dict[str, Any], int]:
            runs.append(begin())
            return runs[0].ledger.identity, runs[0].ledger.extra, len(runs[0].operations)

        identity, extra, length = processes.from_first(start)
        run = runs[0] if runs else None
        ledger = run.ledger if run else Ledger(identity, extra, EditedWeights(model), finish=editor.finish)
        return cls(processes, model, ledger, run, length)

    def edit_to(self, n_operations: int | None = None) -> None:
        """As `EditRun.edit_to`, with all processes at the same n; afterwards all have the same weights.

        Raises:
            EditError: an edit failed its guards, or the processes' weights differ; all models are restored.
        """
        n = self.length if n_operations is None else min(n_operations, self.length)
        ledger = self.ledger
        start = ledger.rewind(n)  # the same everywhere: all have come the same way
        try:
            operations, ledger.guards = self.processes.from_first(lambda: self._edit(n))
            if not self.processes.is_first:  # those known already keep their deltas: no operation is ever made anew
                ledger.operations += operations
            self.told += len(operations)
            self.processes.check_same_weights(self.model, self._follow(start, n))
        except BaseException:
            ledger.restore()
            raise

    def _edit(self, n: int) -> tuple[list[Operation], dict[str, Any]]:
        assert self.run is not None, "only the first process edits, and the run is its own"
        self.run.edit_to(n)
        done = [Operation(o.index, o.facts, o.record) for o in self.ledger.operations[self.told :]]
        return done, self.ledger.guards

    def _follow(self, start: int, n: int) -> Exception | None:
        """Hand round the deltas from operation `start` on, and apply them everywhere but on the first process.

        Returns:
            What went wrong here. The rest is received all the same: the others are sending it.
        """
        ledger, failure = self.ledger, None
        for index in range(start, n + 1):  # after the last operation the correction

            def made(index: int = index) -> dict[str, Tensor]:
                return flatten_deltas(self._deltas(index, n))

            tensors = self.processes.tensors_from_first(made)
            if self.processes.is_first:
                if index < n:
                    ledger.operations[index].release()
            elif failure is None:
                try:
                    if index < n:
                        ledger.operations[index].receive(unflatten_deltas(tensors))
                        ledger.replay(index + 1)
                    else:
                        ledger.correct(unflatten_deltas(tensors))
                except Exception as error:  # out of memory, say
                    failure = error
        return failure

    def _deltas(self, index: int, n: int) -> dict[str, Delta]:
        return self.ledger.operations[index].deltas if index < n else self.ledger.correction
