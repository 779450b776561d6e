"""`lm-eval-edit compare`: is it worse, by how much, and are we sure?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lm_eval_edit.commands._names import names
from lm_eval_edit.errors import UserError

FORMATS = ("table", "markdown", "json", "csv")


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `compare`."""
    parser = subparsers.add_parser(
        "compare",
        help="compare results of lm_eval document by document, before and after",
        description="Compare results of lm_eval (with --log_samples), of any models and tasks, document by document. "
        "docs/statistics.md explains every figure.",
    )
    parser.add_argument("base", metavar="BASE", help="results_*.json, a folder with one, or a frozen baseline")
    parser.add_argument("edited", metavar="EDITED", nargs="+", help="the same, of the runs to compare with it")
    parser.add_argument("--tasks", metavar="NAMES", help="compare these tasks only, separated by commas")
    parser.add_argument("--metrics", metavar="NAMES", help="show these metrics only, separated by commas")
    parser.add_argument("--delta", type=float, default=0.02, help="a drop that may be tolerated (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of tests and intervals (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of permutations and bootstraps (default: %(default)s)")
    parser.add_argument("--cluster", metavar="FIELD", help="document field that dependent documents share, or none")
    parser.add_argument("--noise", metavar="RUN", help="a second unedited run: shows what differs without any edit")
    parser.add_argument("--flips", metavar="FILE", type=Path, help="write the documents that changed, as JSONL")
    parser.add_argument("--metric", metavar="NAME", help="with --flips: by this metric (default: each task's headline)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="(default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Compare and print; the exit status is 0 whatever the verdicts (`check` is the gate)."""
    from lm_eval_edit._support.terminal import printable, printable_json
    from lm_eval_edit.comparison import tables
    from lm_eval_edit.comparison.as_json import to_json
    from lm_eval_edit.comparison.compare import Settings, compare_runs
    from lm_eval_edit.comparison.flips import write_flips
    from lm_eval_edit.comparison.group_means import seed_rows
    from lm_eval_edit.comparison.other_engines import warnings
    from lm_eval_edit.comparison.results import load_run

    settings = Settings(args.alpha, args.delta, args.seed, names(args.tasks), names(args.metrics))
    if args.metric and not args.flips:
        raise UserError("--metric says by which metric documents are written; it needs --flips FILE (or use --metrics)")
    if args.flips and len(args.edited) > 1:
        raise UserError(f"--flips takes one EDITED, {len(args.edited)} are given; call compare once for each")
    base = load_run(args.base, cluster=args.cluster)
    comparisons = [compare_runs(base, load_run(path, cluster=args.cluster), settings) for path in args.edited]
    noise = compare_runs(base, load_run(args.noise, cluster=args.cluster), settings) if args.noise else None
    seeds = seed_rows(comparisons, args.alpha)

    if args.format == "json":
        extra = {"seeds": [row.json() for row in seeds], "noise": None}
        if noise is not None:
            extra["noise"] = to_json([noise], settings, {})["comparisons"][0]
        print(printable_json(to_json(comparisons, settings, extra), indent=2))
    elif args.format == "csv":
        print(tables.csv_text(comparisons), end="")
    elif args.format == "markdown":
        print(tables.markdown(comparisons, seeds, noise, args.alpha))
    else:
        tables.print_tables(comparisons, seeds, noise, args.alpha)
    engines = [text for each in comparisons for text in warnings(each, settings, cluster=args.cluster)]
    for notice in [*tables.notices(comparisons), *map(printable, dict.fromkeys(engines))]:
        print(notice, file=sys.stderr)
    if args.flips:
        count = write_flips(comparisons[0], args.flips, args.metric)
        print(f"{count} documents that changed are in {args.flips}", file=sys.stderr)
    return 0
