"""`lm-eval-edit validate`: what a run would edit and how, and every problem of its options, without loading weights."""

from __future__ import annotations

import argparse

from lm_eval_edit._support.terminal import printable
from lm_eval_edit.commands._model_args import add_model_args, parse_model_args


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `validate`."""
    parser = subparsers.add_parser(
        "validate",
        help="show what a run would edit and all problems of its options, without loading the model",
        description=(
            "Show, for the --model_args of a run, the modules found, the layers, the hyper-parameters and where each "
            "comes from, the facts, the memory needed, and all problems at once. Exit status 1 if there is one."
        ),
    )
    add_model_args(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the plan, then its problems."""
    from lm_eval_edit.commands._validation import validation

    lines, problems = validation(parse_model_args(args.model_args))
    print(printable("\n".join(lines)))
    if not problems:
        print("\nno problems")
        return 0
    print("\n1 problem" if len(problems) == 1 else f"\n{len(problems)} problems")
    for problem in problems:
        print(printable(f"  - {problem}"))
    return 1
