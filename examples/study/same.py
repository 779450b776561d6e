"""How far two runs of the study lie apart, document by document: a machine's rounding, or something else.

python -m examples.study.same OTHER_RESULTS    # beside examples/study/results/reduced
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from lm_eval_edit.comparison.runs import TaskSamples
from lm_eval_edit.errors import UserError

from .cells import Cells
from .design import RESULTS


def apart(one: Cells, other: Cells) -> tuple[dict[str, float], list[str]]:
    """Metric -> the largest difference of any document in any cell; and what only one of them has: a cell, a task's
    documents, or a metric that the other could not compute for the same ones."""
    largest: dict[str, float] = {}
    strange = sorted(set(one.all) ^ set(other.all))
    for name in sorted(one.all.keys() & other.all.keys()):
        a, b = one.all[name].run, other.all[name].run
        if a is None or b is None:
            strange += [] if a is b else [name]
            continue
        for key in sorted(a.samples.keys() | b.samples.keys()):
            mine, its = a.samples.get(key), b.samples.get(key)
            if mine is None or its is None or not _same_documents(mine, its):
                strange.append(f"{name}: {key[0]}")
                continue
            for metric in sorted(mine.metrics.keys() | its.metrics.keys()):
                gap = _gap(mine, its, metric)
                if gap is None:
                    strange.append(f"{name}: {key[0]} {metric}")
                else:
                    largest[metric] = max(largest.get(metric, 0.0), gap)
    return largest, strange


def _same_documents(mine: TaskSamples, its: TaskSamples) -> bool:
    return mine.hashes.keys() == its.hashes.keys() and all(
        np.array_equal(mine.hashes[which], its.hashes[which]) for which in mine.hashes
    )


def _gap(mine: TaskSamples, its: TaskSamples, metric: str) -> float | None:
    """The largest difference of a document's figures; None where one of the two has no figure and the other does."""
    if metric not in mine.metrics or metric not in its.metrics:
        return None
    a, b = (np.asarray(each.metrics[metric].counts, dtype=float) for each in (mine, its))
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return None
    apart = a != b  # of two infinities of one sign the difference is none, and not a number
    apart &= ~np.isnan(a)
    return float(np.max(np.abs(a[apart] - b[apart]), initial=0.0))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("other", type=Path, help="collected cells of another run")
    parser.add_argument("--results", type=Path, default=RESULTS / "reduced")
    given = parser.parse_args(argv)
    try:
        largest, strange = apart(Cells(given.results), Cells(given.other))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    for metric, gap in sorted(largest.items()):
        print(f"{metric}: {gap:.3g}")
    for name in strange:
        print(f"in one alone, or of other documents: {name}")
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main())
