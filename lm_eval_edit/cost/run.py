"""What a run will cost before it is started: prompts, tokens, FLOP, bytes and hours of a GPU.

An estimate, never a measurement. Counted exactly: documents, generated tokens, weights, and the floating-point
operations of every matrix product of a forward pass. Assumed, and so uncertain:

    tokens of a prompt    mean characters (measured on the paper's own files) / characters per token; ± 20 %
    utilisation           the share of the datasheet's speed that eager PyTorch reaches; a factor of 2 either way
    seconds per block     kernel launches, which bound small batches whatever the device; a factor of 2 either way

Padding is not counted (the harness sorts prompts by length), nor are results' scoring and writing. The parts are in
`cost_work` (shapes, devices, passes) and `cost_editing` (what each method does); none needs torch, but for `Shape.of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_edit.cost.editing import editing, second_moments
from lm_eval_edit.cost.memory import editing_memory
from lm_eval_edit.cost.work import DEVICES, Device, Pass, Shape, Work
from lm_eval_edit.errors import UserError, nearest
from lm_eval_edit.tasklib.suite.catalogue import GROUP, TASKS

CHARACTERS_PER_TOKEN = 4.0  # the usual rule of thumb for English and vocabularies of 30,000 to 50,000 entries


@dataclass(frozen=True)
class Cost:
    """An estimate; sums of them are estimates too.

    Attributes:
        prompts: Documents evaluated.
        tokens: Read and generated in evaluations.
        flop: Of evaluations and edits.
        weight_bytes: Of the largest model.
        gpus: Devices that the largest model needs.
        seconds: One thing after another.
        gpu_seconds: Times the devices that are held meanwhile.
        parts: Seconds of "loading", "editing" and "evaluating".
    """

    prompts: int = 0
    tokens: float = 0.0
    flop: float = 0.0
    weight_bytes: int = 0
    gpus: int = 1
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600

    def __add__(self, other: Cost) -> Cost:
        names = dict.fromkeys((*self.parts, *other.parts))
        return Cost(
            self.prompts + other.prompts,
            self.tokens + other.tokens,
            self.flop + other.flop,
            max(self.weight_bytes, other.weight_bytes),
            max(self.gpus, other.gpus),
            self.seconds + other.seconds,
            self.gpu_seconds + other.gpu_seconds,
            {name: self.parts.get(name, 0.0) + other.parts.get(name, 0.0) for name in names},
        )


@dataclass(frozen=True)
class TaskSize:
    """How large a task is.

    Attributes:
        documents: Prompts.
        characters: Mean length of a prompt.
        spread: Root mean square of its length: what attention's work goes with.
    """

    documents: int
    characters: float
    spread: float


#: Measured on the files of Gu et al. with the prompts of `tasklib.prompts`; MuTual on its development set of 886. The
#: numbers of documents are those of the hub's splits (theirs lack one of RTE's and three of BoolQ's).
SIZES = {
    "gsm8k": TaskSize(1319, 601.5, 636.3),
    "rte": TaskSize(2490, 357.2, 406.9),
    "nq": TaskSize(3610, 468.0, 540.1),
    "boolq": TaskSize(3270, 725.9, 792.2),
    "mutual": TaskSize(886, 757.7, 812.0),
    "samsum": TaskSize(818, 506.4, 647.4),
    "conll2003": TaskSize(13000, 151.4, 166.0),
    "sst2": TaskSize(872, 253.8, 258.4),
}


def known_tasks(names: Iterable[str], limit: int | None = None) -> tuple[dict[str, int | None], list[str]]:
    """(task: limit for those whose size is known, the names that are not estimated), groups of ours taken apart."""
    known: dict[str, int | None] = {}
    unknown = []
    for name in names:
        task = name.removeprefix("edithurt_")
        if name == GROUP:
            known |= dict.fromkeys(SIZES, limit)
        elif task in SIZES and task != name:  # `rte` and `boolq` alone are the harness's own, of other sizes
            known[task] = limit
        else:
            unknown.append(name)
    return known, unknown


def evaluation(
    shape: Shape,
    tasks: Mapping[str, int | None],
    batch_size: int = 16,
    characters_per_token: float = CHARACTERS_PER_TOKEN,
) -> tuple[int, float, Work]:
    """(prompts, tokens, work) of one evaluation.

    Args:
        tasks: {name in the catalogue: at most so many documents, or None for all}.

    Raises:
        UserError: a task whose size is not known.
    """
    prompts, tokens, work = 0, 0.0, Work()
    for name, limit in tasks.items():
        if name not in SIZES:
            raise UserError(f"task {name}: its size is not known.{nearest(name, SIZES)} Known are {', '.join(SIZES)}")
        size, new = SIZES[name], TASKS[name].new_tokens
        documents = size.documents if limit is None else min(limit, size.documents)
        length, spread = size.characters / characters_per_token, size.spread / characters_per_token
        batches = math.ceil(documents / batch_size)
        rows = documents / batches if batches else 0.0
        # The first pass gives the first token; each further token is a pass of its own over all that came before it.
        read = Pass(batches, rows * (shape.blocks(length, spread**2) + shape.head), shape.layers)
        one_more = rows * (shape.blocks(1, length + new / 2) + shape.head)
        work += Work((read, Pass(batches * (new - 1), one_more, shape.layers)))
        prompts += documents
        tokens += documents * (length + new)
    return prompts, tokens, work


def estimate(
    shape: Shape,
    *,
    tasks: Mapping[str, int | None],
    evaluations: int,
    loads: int = 1,
    editor: str = "none",
    options: Mapping[str, Any] | None = None,
    operations: Iterable[int] = (),
    second_moment_tokens: int = 0,
    device: Device = DEVICES["h100"],
    weight_bytes: int = 2,
    batch_size: int = 16,
    characters_per_token: float = CHARACTERS_PER_TOKEN,
) -> Cost:
    """What some evaluations of one model cost, with the edits before and between them.

    Args:
        shape: Of the model.
        tasks: As `known_tasks` gives them.
        evaluations: How often all the tasks are run.
        loads: How often the model is loaded.
        editor: The method; none for no edits.
        options: Its hyper-parameters, as `Editor.describe` gives them (of the wrapped editor too).
        operations: The number of facts of every editing operation; one for each fact where they are edited singly.
        second_moment_tokens: Tokens of the corpus that E[k kᵀ] is collected from, once; 0 if it is there already.
        weight_bytes: Of one weight: 2 for float16 and bfloat16, 4 for float32.
        batch_size: Prompts evaluated together.

    Raises:
        UserError: a task or an editor that there is no estimate of.
    """
    prompts, tokens, one = evaluation(shape, tasks, batch_size, characters_per_token)
    evaluating = one.times(evaluations)
    done = list(operations)
    edits = editing(shape, editor, options or {}, done, characters_per_token)
    if second_moment_tokens:
        edits += second_moments(shape, editor, options or {}, second_moment_tokens)
    size = shape.parameters * weight_bytes
    # A fifth for activations, caches and float32 copies of what is edited, which a mixture may have more of.
    needed = 1.2 * size
    if done and editor != "none":
        held = editing_memory(shape, editor, options or {}, max(done), weight_bytes, len(done))
        needed = max(needed, 1.1 * size + held.originals) + held.factors + held.keys + held.training
    gpus = max(1, math.ceil(needed / device.memory))
    parts = {
        "loading": loads * (device.start_seconds + size / device.load_rate),
        "editing": edits.seconds(shape, device, weight_bytes, experts_apart=True),
        "evaluating": evaluating.seconds(shape, device, weight_bytes),
    }
    seconds = sum(parts.values())
    flop = evaluating.flop + edits.flop
    return Cost(prompts * evaluations, tokens * evaluations, flop, size, gpus, seconds, seconds * gpus, parts)
