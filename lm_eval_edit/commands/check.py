"""`lm-eval-edit check`: the gate for continuous integration."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from lm_eval_edit.errors import UserError

_EPILOG = """\
exit status: 0 pass; 1 a regression, or a floor not reached; 2 inconclusive, or input that cannot be used

a --config file:
  max_drop: 0.02
  min_recovery: 0.95
  tasks:
    hellaswag: {metric: acc_norm, max_drop: 0.01}
    wikitext: {max_drop: 0.5}    # max_drop above is in points of a figure from 0 to 1
  min: {efficacy.em: 0.9}
"""


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `check`."""
    parser = subparsers.add_parser(
        "check",
        help="a gate: exit 0, 1 or 2 by how current results hold against a baseline",
        description="Hold results of lm_eval (with --log_samples) against a baseline, document by document.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--baseline", metavar="RUN", required=True, help="results, a folder, or a frozen baseline")
    parser.add_argument("--current", metavar="RUN", help="the results to check")
    parser.add_argument("--freeze", metavar="FILE", type=Path, help="write --baseline as one small file and stop")
    parser.add_argument("--config", metavar="FILE", type=Path, help="limits as YAML, also for single tasks")
    parser.add_argument("--max-drop", type=float, help="largest absolute drop (default: 0.02)")
    parser.add_argument("--min-recovery", type=float, metavar="SHARE", help="smallest current / baseline")
    parser.add_argument("--min", action="append", default=[], metavar="NAME=VALUE",
                        help="floor: efficacy.em=0.9, retained.em=0.9, or TASK.METRIC=VALUE; repeatable")  # fmt: skip
    parser.add_argument("--alpha", type=float, help="level of tests and intervals (default: 0.05)")
    parser.add_argument("--seed", type=int, help="of permutations and bootstraps (default: 0)")
    parser.add_argument("--cluster", metavar="FIELD", help="document field that dependent documents share, or none")
    parser.add_argument("--summary", metavar="FILE", type=Path, help="write the markdown summary here")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="write JUnit XML here")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report as JSON here")
    return parser


def run(args: argparse.Namespace) -> int:
    """Check, print the summary, write the reports; whatever goes wrong is status 2, never a pass."""
    from lm_eval_edit._support.files import write_bytes, write_json
    from lm_eval_edit._support.terminal import printable
    from lm_eval_edit.comparison import baseline, check, check_reports
    from lm_eval_edit.comparison.results import load_run

    gate = check.Gate()
    try:
        if args.freeze:
            found = load_run(args.baseline, cluster=args.cluster)
            baseline.freeze(found, args.freeze)
            print(f"{args.freeze}: {len(found.tasks)} tasks, {args.freeze.stat().st_size:,} bytes")
            return check.PASS
        if not args.current:
            raise UserError("--current is missing: the results to check (or --freeze FILE to make a baseline)")
        gate = _gate(args)
        report = check.check(
            load_run(args.baseline, cluster=args.cluster),
            load_run(args.current, cluster=args.cluster),
            gate,
            cluster=args.cluster,
        )
    except (UserError, OSError) as error:
        report = check.Report((), str(error))
    except Exception as error:  # Python's own exit status would be 1, which means a regression
        traceback.print_exc()
        report = check.Report((), f"{type(error).__name__}: {error}")
    summary = check_reports.markdown(report)
    print(summary, end="")
    if report.error:
        print(printable(report.error), file=sys.stderr)
    try:
        if args.summary:
            write_bytes(args.summary, summary.encode())
        if step_summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with open(step_summary, "a", encoding="utf-8") as file:
                file.write(summary)
        if args.junit:
            write_bytes(args.junit, check_reports.junit(report))
        if args.json:
            write_json(args.json, check.to_json(report, gate))
    except OSError as error:  # whoever reads the report would read that of an earlier run
        print(printable(str(error)), file=sys.stderr)
        return report.status or check.UNUSABLE
    return report.status


def _gate(args: argparse.Namespace) -> Any:
    """The gate of the file, the command line's limits over those of the file."""
    from lm_eval_edit._support.files import read_yaml
    from lm_eval_edit.comparison import check

    gate = check.read_gate(read_yaml(args.config, unique_keys=True), str(args.config)) if args.config else check.Gate()
    given = {name: getattr(args, name) for name in ("max_drop", "min_recovery", "alpha", "seed")}
    floors = dict(gate.floors)
    for text in args.min:
        name, _, value = text.partition("=")
        try:
            floors[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"--min {text}: want NAME=VALUE, such as efficacy.em=0.9") from None
    return dataclasses.replace(gate, **{k: v for k, v in given.items() if v is not None}, floors=floors)
