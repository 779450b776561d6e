"""What the thousandth edit costs beside the tenth: processor time, memory and disk of long runs, and opening them.

    python benchmarks/lifelong.py                                       # 1,000 edits, all methods; minutes
    python benchmarks/lifelong.py --counts 10 100 1000 3000             # as the field runs them
    python benchmarks/lifelong.py --methods rome ultraedit --counts 10 1000 10000 --batch-sizes 1
    python benchmarks/lifelong.py --tiny                                # seconds: does it run

A random model of some ten thousand weights and made-up facts: what is looked at is what the package does around an
edit, and how that grows, so the edit itself is kept cheap (few optimisation steps, two context templates). Every row is
a run in a process of its own, whose peak memory is its own. Exit status 1 where a figure is missed; docs/performance.md
has the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.editing import WORDS, Size, make_model, make_tokenizer  # noqa: E402
from lm_eval_edit import Fact, edit_model  # noqa: E402
from lm_eval_edit.edits.ledger import Ledger  # noqa: E402
from lm_eval_edit.models.architecture import Architecture  # noqa: E402

METHODS = ("rome", "memit", "memit_seq", "alphaedit", "ultraedit")
ONE_BY_ONE = {"rome"}
SIZE = Size(layers=3, width=32, inner=64, vocabulary=512)
LAYERS = (0, 1)
MEMIT = {"layers": LAYERS, "v_num_grad_steps": 3, "v_lr": 0.01}
OPTIONS: dict[str, dict[str, Any]] = {
    "rome": {"layers": (1,), "v_num_grad_steps": 3, "v_lr": 0.01},
    "memit": MEMIT | {"mom2_update_weight": 100.0},
    "memit_seq": MEMIT | {"mom2_update_weight": 100.0},
    "alphaedit": MEMIT | {"L2": 1.0, "nullspace_threshold": 0.05},
    "ultraedit": {"layers": LAYERS, "lr": 1e-6},
}
TEMPLATES = ("{}", "The mother tongue . {}")
KIB = 1024


@dataclass(frozen=True)
class Wanted:
    """The figures.

    Attributes:
        time: An edit late in the run, times one early in it, in processor time.
        memory: KiB that the peak may grow for each edit, beside the method's own state: the fact and its record.
        opening: An operation of the whole ledger that is opened, times one of a tenth of it.
    """

    time: float = 1.2
    memory: float = 24.0
    opening: float = 1.5


def make_facts(count: int) -> list[Fact]:
    """Facts of one form, no two alike: what they cost differs by what came before them alone."""
    draw = random.Random(0)
    pairs = draw.sample([(a, b) for a in WORDS for b in WORDS if a != b], count)
    return [
        Fact(f"{a} {b}", "The mother tongue of {}", draw.choice(WORDS), draw.choice(WORDS), id=str(i))
        for i, (a, b) in enumerate(pairs)
    ]


def make_moments(model: Any) -> dict[str, torch.Tensor]:
    """A made-up E[k kᵀ] of every edited matrix, with eigenvalues from 0.01 to 1."""
    generator = torch.Generator().manual_seed(0)
    moments = {}
    for layer in LAYERS:
        basis, _ = torch.linalg.qr(torch.randn(SIZE.inner, SIZE.inner, generator=generator, dtype=torch.float64))
        values = torch.logspace(-2, 0, SIZE.inner, dtype=torch.float64)
        moments[Architecture.discover(model).down_projections[layer]] = ((basis * values) @ basis.T).float()
    return moments


def tensor_bytes() -> int:
    """Bytes of all tensors there are, each storage once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and found.layout == torch.strided:
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Clock:
    """Processor time when each operation has been stored; tensors and peak memory at some numbers of edits.

    A shared machine is faster at one time and slower at another, by more than the figures wanted. So a fixed piece of
    work of the same kind, passes through a small model, is timed after every operation, and a ratio is one of both.

    Args:
        counts: Those numbers.
        batch_size: Facts of an operation.
    """

    def __init__(self, counts: Sequence[int], batch_size: int):
        self.counts, self.batch_size = counts, batch_size
        self.spent: list[float] = []  # of each operation
        self.fixed: list[float] = []  # of the fixed work after it
        self.tensors: dict[int, int] = {}
        self.peak: dict[int, int] = {}
        self._edits = 0
        self._model = make_model("gpt2", SIZE, torch.float32, "cpu")
        self._since = time.process_time()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Within it the clock looks at whatever ledger of this process an operation is added to."""
        append, clock = Ledger.append, self

        def timed(ledger: Ledger, facts: Sequence[Fact], *args: Any) -> Any:
            operation = append(ledger, facts, *args)
            clock.stored(len(facts))
            return operation

        Ledger.append = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            Ledger.append = append  # type: ignore[method-assign]

    def stored(self, n_facts: int) -> None:
        """Note that an operation of some facts has been stored."""
        self.spent.append(time.process_time() - self._since)
        before, self._edits = self._edits, self._edits + n_facts
        for count in self.counts:
            if before < count <= self._edits:
                self.tensors[count] = tensor_bytes()
                self.peak[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
        started = time.process_time()
        for _ in range(2):
            loss = self._model(torch.arange(24).view(4, 6)).logits.square().mean()
            torch.autograd.grad(loss, list(self._model.parameters()))
        self._since = time.process_time()
        self.fixed.append(self._since - started)

    def per_edit(self, count: int) -> tuple[float, float]:
        """Seconds of one edit when there are about `count`, and of the fixed work: medians over operations around it.

        The first operation pays for much else (the factors of C, what is compiled at its first use): it is left out.
        """
        size = self.batch_size
        at, reach = -(-count // size), max(4, min(100, count // (4 * size)))
        some = slice(max(1, at - reach), at + reach)
        return (
            statistics.median(self.spent[some] or self.spent) / size,
            statistics.median(self.fixed[some] or self.fixed),
        )


def run(method: str, batch_size: int, counts: Sequence[int], how: str, folder: Path) -> dict[str, Any]:
    """One row.

    Args:
        method: Of METHODS.
        batch_size: Facts of an operation.
        counts: Numbers of edits at which figures are taken; the last is the length of the run.
        how: "run", one schedule; "edit", a call of `Ledger.edit` for every operation.
        folder: For the ledger.
    """
    n = counts[-1]
    facts, tokenizer = make_facts(n), make_tokenizer()
    model = make_model("gpt2", SIZE, torch.float32, "cpu")
    templates = None if method == "ultraedit" else TEMPLATES if method == "rome" else (TEMPLATES[:1], TEMPLATES[1:])
    given = {
        "editor": method, "edit_batch_size": batch_size, "options": OPTIONS[method], "context_templates": templates,
        "second_moments": None if method in ("rome", "ultraedit") else make_moments(model), "ledger": folder,
        "progress": False,
    }  # fmt: skip
    clock = Clock(counts, batch_size)
    with clock.following():
        ledger = edit_model(model, tokenizer, facts if how == "run" else facts[:batch_size], **given)
        for start in range(batch_size, n, batch_size) if how == "edit" else ():
            ledger.edit(facts[start : start + batch_size], ask_all=False)
    ledger.restore()
    (first, fixed_first), (last, fixed_last) = clock.per_edit(counts[0]), clock.per_edit(n)
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    row = {
        "method": method, "batch_size": batch_size, "how": how,
        "ms": {count: 1e3 * clock.per_edit(count)[0] for count in counts},
        "fixed_ms": {count: 1e3 * clock.per_edit(count)[1] for count in counts},
        "ratio": last / first, "ratio_to_fixed": last / first / (fixed_last / fixed_first),
        "tensors": clock.tensors, "peak": clock.peak,
        "own_state": own_state(method), "disk": sum(file.st_size for file in files) / n,
    }  # fmt: skip
    return row | {"opening_ms": opening(model, tokenizer, facts, given)}


def opening(model: Any, tokenizer: Any, facts: list[Fact], given: dict[str, Any]) -> dict[int, float]:
    """Milliseconds of processor time for each operation of a stored run's prefix that is opened, replayed and asked."""
    n, size = len(facts), given["edit_batch_size"]
    found = {}
    for length in sorted({max(size, n // 10 // size * size), n}):
        best = float("inf")
        for _ in range(2):
            started = time.process_time()
            ledger = edit_model(model, tokenizer, facts[:length], **given)
            best = min(best, time.process_time() - started)
            ledger.restore()
        found[length] = 1e3 * best / length
    return found


def own_state(method: str) -> int:
    """Bytes of tensors that a method defines as its state, and may therefore come to hold."""
    if method in ("memit_seq", "alphaedit"):  # the square root of an (f, f) system for each matrix, once it is full
        return len(LAYERS) * 8 * SIZE.inner**2
    return len(LAYERS) * 2 * 8 * (SIZE.inner + SIZE.width) if method == "ultraedit" else 0


def missed(row: dict[str, Any], counts: Sequence[int], wanted: Wanted) -> list[str]:
    """The figures that a row misses, as sentences."""
    name = f"{row['method']}, {row['batch_size']} at once, {row['how']}"
    first, last = counts[0], counts[-1]
    out = []
    if (grown := row["ratio_to_fixed"]) > wanted.time:
        out.append(f"{name}: edit {last} takes {grown:.2f} times as long as edit {first} (wanted: {wanted.time:g})")
    tensors = row["tensors"][last] - row["tensors"][first] - row["own_state"]
    if tensors > KIB:
        out.append(f"{name}: {tensors} bytes of tensors are held beyond the method's own state")
    peak = (row["peak"][last] - row["peak"][first] - row["own_state"]) / KIB / (last - first)
    if last >= 500 and peak > wanted.memory:  # what the allocator keeps back counts for much in a short run
        out.append(f"{name}: the peak grows by {peak:.1f} KiB an edit (wanted: {wanted.memory:g})")
    short, whole = row["opening_ms"].values() if len(row["opening_ms"]) == 2 else (1.0, 1.0)
    if whole / short > wanted.opening:
        out.append(f"{name}: opening takes {whole / short:.2f} times as long per edit as opening a tenth of it does")
    return out


def table(rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> str:
    """All rows, in Markdown."""
    first, last = counts[0], counts[-1]
    heads = [
        "method", "at once", "how", *(f"ms at {count:,}" for count in counts), "ratio", "to fixed work",
        f"peak MiB at {first:,}", f"at {last:,}", "tensors +KiB", "own state KiB", "disk KiB/edit", "opening ms/edit",
    ]  # fmt: skip
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        ms, peak, tensors = row["ms"], row["peak"], row["tensors"]
        lines.append(
            [
                row["method"], str(row["batch_size"]), row["how"], *(f"{ms[count]:.2f}" for count in counts),
                f"{row['ratio']:.2f}", f"{row['ratio_to_fixed']:.2f}",
                f"{peak[first] / KIB**2:.0f}", f"{peak[last] / KIB**2:.0f}",
                f"{(tensors[last] - tensors[first]) / KIB:.1f}", f"{row['own_state'] / KIB:.1f}",
                f"{row['disk'] / KIB:.2f}", " / ".join(f"{value:.2f}" for value in row["opening_ms"].values()),
            ]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_a_process(method: str, batch_size: int, counts: Sequence[int], how: str, threads: int) -> dict[str, Any]:
    """`run` in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        given = json.dumps([method, batch_size, list(counts), how, f"{name}/ledger", threads])
        done = subprocess.run([sys.executable, __file__, "--row", given], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{method}, {batch_size} at once: failed, see above")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for figure in ("ms", "fixed_ms", "tensors", "peak", "opening_ms"):
        row[figure] = {int(count): value for count, value in row[figure].items()}
    return row


def in_this_process(method: str, batch_size: int, counts: Sequence[int], how: str, threads: int) -> dict[str, Any]:
    """`run` here: its peak memory is that of all there was before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as name:
            return run(method, batch_size, counts, how, Path(name, "ledger"))
    finally:
        torch.set_num_threads(before)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[10, 100, 1000], help="edits at which figures are taken"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 100], help="edits of an operation")
    parser.add_argument(
        "--how", nargs="+", choices=("run", "edit"), default=["run"], help="one schedule, or a call each"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    parser.add_argument("--tiny", action="store_true", help="20 edits of two methods, no figure is wanted")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.row:
        method, batch_size, counts, how, folder, threads = json.loads(args.row)
        torch.set_num_threads(threads)
        logging.getLogger("lm_eval_edit").setLevel(logging.ERROR)  # so few steps do not take, and that is told
        print(json.dumps(run(method, batch_size, counts, how, Path(folder))))
        return 0
    counts = sorted(set(args.counts))
    if args.tiny:
        args.methods, args.batch_sizes, args.how, counts = ["rome", "memit_seq"], [1, 10], ["run", "edit"], [10, 20]
    rows, problems = [], []
    for method in args.methods:
        for batch_size in args.batch_sizes:
            if batch_size > 1 and method in ONE_BY_ONE:
                continue
            # The first operation pays for much else, so the second is the earliest that is looked at.
            own = sorted({max(count, min(2 * batch_size, counts[-1])) if batch_size > 1 else count for count in counts})
            for how in args.how:
                row = (in_this_process if args.tiny else in_a_process)(method, batch_size, own, how, args.threads)
                problems += [] if args.tiny else missed(row, own, Wanted())
                early = {"ms", "fixed_ms", "tensors", "peak"}
                filled = {key: {c: row[key][max(c, own[0])] for c in counts} for key in early}
                rows.append(row | filled)
                print(table([rows[-1]], counts).splitlines()[-1], file=sys.stderr, flush=True)
    print(f"torch {torch.__version__}, {args.threads} thread(s), processor time\n\n{table(rows, counts)}")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("".join(f"\nmissed: {problem}" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
