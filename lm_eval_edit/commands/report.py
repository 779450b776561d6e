"""`lm-eval-edit report`: a sweep as one HTML file that opens from disk."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_edit.errors import ConfigurationError

if TYPE_CHECKING:
    from lm_eval_edit.plots import Picture
    from lm_eval_edit.report import Options
    from lm_eval_edit.sweep.reading import Sweep


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `report`."""
    parser = subparsers.add_parser(
        "report",
        help="describe a sweep as one HTML file: figures, pictures, damage budget, what broke",
        description="Describe the folder of a sweep, finished or not, as one HTML file that needs no network.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="what `lm-eval-edit sweep -o` wrote")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the report (default: DIR/report.html); replaces an older report, and nothing else",
    )
    parser.add_argument(
        "--delta",
        metavar="DROPS",
        default="0.01,0.02,0.05,0.1",
        help="the drops of the damage budget, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--items", metavar="N", default="5", help="broken documents shown of each row and task (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha", metavar="LEVEL", default="0.05", help="intervals are at 1 − LEVEL (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", metavar="N", default="0", help="of permutations and bootstraps (default: %(default)s)"
    )
    parser.add_argument("--no-plots", action="store_true", help="leave the pictures out (they need matplotlib)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    options = _options(args)

    from lm_eval_edit.report import check_output, write_report
    from lm_eval_edit.sweep.reading import load_sweep

    file = args.output or args.folder / "report.html"
    sweep = load_sweep(args.folder)
    check_output(file)
    pictures, notices = ([], []) if args.no_plots else _pictures(sweep)
    size = write_report(sweep, file, pictures, options, notices=notices, progress=sys.stderr.isatty())
    print(f"{file}: {size:,} bytes")
    return 0


def _pictures(sweep: Sweep) -> tuple[list[Picture], list[str]]:
    """The pictures of a sweep, of each task's headline metric, and what they leave out."""
    from lm_eval_edit.plots import choose, figures
    from lm_eval_edit.sweep.reading import DONE

    if not any(cell.n_edits and cell.status == DONE for _, cell in sweep.cells()):
        return [], []  # nothing to draw yet
    choices = choose(sweep)
    return figures(sweep, choices=choices), list(dict.fromkeys(line for each in choices for line in each.notices))


def _options(args: argparse.Namespace) -> Options:
    """What was asked for, or every mistake in it."""
    from lm_eval_edit.report import Options

    problems = []
    deltas = [_number(word) for word in args.delta.split(",")]
    if not all(0 <= delta < math.inf for delta in deltas):
        problems.append(f"--delta {args.delta}: want drops of at least 0, separated by commas, such as 0.02,0.05")
    if not 0 < (alpha := _number(args.alpha)) < 1:
        problems.append(f"--alpha {args.alpha}: want a level between 0 and 1, such as 0.05")
    for name in ("items", "seed"):
        if not getattr(args, name).isdecimal():
            problems.append(f"--{name} {getattr(args, name)}: want a whole number of at least 0")
    if problems:
        raise ConfigurationError(problems)
    return Options(alpha=alpha, deltas=tuple(sorted(set(deltas))), seed=int(args.seed), items=int(args.items))


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
