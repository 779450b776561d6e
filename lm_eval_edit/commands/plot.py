"""`lm-eval-edit plot`: the pictures of a sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lm_eval_edit.commands._names import names
from lm_eval_edit.errors import ConfigurationError, nearest


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `plot`."""
    parser = subparsers.add_parser(
        "plot",
        help="draw what a sweep found",
        description="Draw a sweep's folder, finished or not: scores against edits, batch sizes and operations, edit "
        "quality against ability, growth of the weights. What cannot be drawn is named on stderr.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="what `lm-eval-edit sweep -o` wrote")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="where pictures go (default: DIR/plots)")
    parser.add_argument("--tasks", metavar="NAMES", help="tasks and groups to draw, separated by commas (default: all)")
    parser.add_argument("--metric", help="which metric of the tasks (default: each task's first)")
    parser.add_argument("--format", default="png,svg", help="png, svg or both (default: %(default)s)")
    parser.add_argument("--kinds", metavar="NAMES", help="methods, tasks, batch, operations, tradeoff, norms")
    return parser


def run(args: argparse.Namespace) -> int:
    """Draw and save; prints the files."""
    from lm_eval_edit._support.files import writing
    from lm_eval_edit._support.terminal import printable
    from lm_eval_edit.plots import FORMATS, KINDS, choose, figures, gaps
    from lm_eval_edit.sweep.design import safe
    from lm_eval_edit.sweep.reading import load_sweep

    kinds, tasks, formats = names(args.kinds), names(args.tasks), names(args.format) or []
    accepted = [("--kinds", kinds or [], list(KINDS)), ("--format", formats, list(FORMATS))]
    problems = [
        f"{option} {word}: not known.{nearest(word, known)} Known are {', '.join(known)}"
        for option, given, known in accepted
        for word in given
        if word not in known
    ]
    problems += [] if formats else ["--format is empty; give png, svg or both"]
    problems += [] if kinds != [] else [f"--kinds is empty; give some of {', '.join(KINDS)}, or leave it out for all"]
    problems += [] if tasks != [] else ["--tasks is empty; give names of tasks and groups, or leave it out for all"]
    if problems:
        raise ConfigurationError(problems)
    sweep = load_sweep(args.folder)
    choices = choose(sweep, tasks, args.metric)
    pictures = figures(sweep, kinds=kinds, choices=choices)
    folder = args.output or args.folder / "plots"
    for picture in pictures:
        for suffix in formats:
            with writing(folder):
                picture.save(folder / f"{safe(picture.name)}.{suffix}")
            print(folder / f"{safe(picture.name)}.{suffix}")
    drawn = {picture.kind for picture in pictures}
    for kind in kinds or ():
        if kind not in drawn:
            print(f"{kind}: nothing to draw; it needs {KINDS[kind]}", file=sys.stderr)
    for line in dict.fromkeys([*(line for choice in choices for line in choice.notices), *gaps(sweep)]):
        print(printable(line), file=sys.stderr)
    return 0
