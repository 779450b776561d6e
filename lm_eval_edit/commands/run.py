"""`lm-eval-edit run`: the harness's own `run`, where start-up files are not read.

Use it instead of `lm_eval` when this package is on PYTHONPATH or in a `pip install --target` folder, where Python reads
no `.pth` files. Where all tasks are ours it skips the 5 seconds in which the harness indexes its 14,000, whatever the
model; the stock command does so for `edited_hf`.
"""

from __future__ import annotations

import argparse
import sys

from lm_eval_edit._support import interrupts
from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import nearest


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `run`, whose arguments are the harness's business, `--help` included."""
    parser = subparsers.add_parser(
        "run",
        help="edit and evaluate: takes the arguments of `lm_eval run`",
        add_help=False,
        # No argument starts with NUL, so argparse takes none for an option and hands them all on as they are.
        prefix_chars="\0",
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def kept(args: argparse.Namespace) -> str:
    """What an interruption leaves: our model type says once it is at work; before, there is nothing."""
    return interrupts.kept() or "nothing is kept; the same command starts anew"


def run(args: argparse.Namespace) -> int:
    """Hand the arguments to the harness's command line, after telling it about our model type and tasks."""
    sys.argv = ["lm-eval-edit", "run", *args.arguments]  # where the harness reads its arguments

    from lm_eval.utils import setup_logging

    from lm_eval_edit._startup import hooks as _hooks
    from lm_eval_edit.harness.command import HarnessCommand, given
    from lm_eval_edit.harness.our_tasks import all_ours, our_names

    setup_logging()
    harness = HarnessCommand()
    try:
        harness_args = harness.parse()
    except SystemExit as ended:
        if ended.code == 2:  # the harness has told what is wrong
            _tell_nearest(harness.options("run"), args.arguments)
        raise
    _hooks.connect()
    _hooks.look_at_chat_templates()
    # Tasks of the user's own may build on built-in ones, whatever they are called.
    if not given(harness_args, "include_path") and all_ours(given(harness_args, "tasks"), our_names()):
        with _hooks.only_our_tasks():
            harness.execute(harness_args)
    else:
        harness.execute(harness_args)
    return 0


def _tell_nearest(accepted: list[str], arguments: list[str]) -> None:
    """Name the nearest option for each that the harness does not know; the harness does not."""
    names = [word.partition("=")[0] for word in arguments if word.startswith("--") and word != "--"]
    for name in names:
        if not any(option.startswith(name) for option in accepted) and (near := nearest(name, accepted)):
            print(printable(f"{name}: no such option.{near}"), file=sys.stderr)
