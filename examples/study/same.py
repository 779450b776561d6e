"""How far two runs of the study lie apart, document by document: a machine's rounding, or something else.

python -m examples.study.same OTHER_RESULTS    # beside examples/study/results/reduced
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from .cells import Cells
from .design import RESULTS


def apart(one: Cells, other: Cells) -> tuple[dict[str, float], list[str]]:
    """Metric -> the largest difference of any document in any cell; and the cells that only one of them has, or whose
    documents are others."""
    largest: dict[str, float] = {}
    strange = sorted(set(one.all) ^ set(other.all))
    for name in one.all.keys() & other.all.keys():
        a, b = one.all[name].run, other.all[name].run
        if (a is None) != (b is None):
            strange.append(name)
        if a is None or b is None:
            continue
        for key, mine in a.samples.items():
            its = b.samples.get(key)
            if its is None or any(not np.array_equal(mine.hashes[which], its.hashes[which]) for which in mine.hashes):
                strange.append(f"{name}: {key[0]}")
                continue
            for metric, found in mine.metrics.items():
                if metric in its.metrics and found.counts.size:
                    gap = np.abs(found.counts - its.metrics[metric].counts)
                    largest[metric] = max(largest.get(metric, 0.0), float(np.nanmax(gap)))
    return largest, strange


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("other", type=Path, help="collected cells of another run")
    parser.add_argument("--results", type=Path, default=RESULTS / "reduced")
    given = parser.parse_args(argv)
    largest, strange = apart(Cells(given.results), Cells(given.other))
    for metric, gap in sorted(largest.items()):
        print(f"{metric}: {gap:.3g}")
    for name in strange:
        print(f"only in one, or other documents: {name}")
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main())
