"""The command `lm-eval-edit`: what the stock `lm_eval` command has no place for.

Each sub-command is a module of `lm_eval_edit.commands`; see there how to add one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence

from lm_eval_edit import __version__, commands
from lm_eval_edit.errors import UserError, nearest


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that names the nearest accepted value when it refuses one."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(action, error.message + nearest(str(value), action.choices or ())) from None


def build_parser() -> argparse.ArgumentParser:
    """The parser for all sub-commands, each found as a module of `lm_eval_edit.commands`."""
    parser = _Parser(
        prog="lm-eval-edit",
        description="Edit a language model's knowledge and measure what that did to everything else it could do.",
        epilog="The evaluation itself also runs by the harness's own command: lm_eval --model edited_hf ...",
    )
    parser.add_argument("--version", action="version", version=f"lm-eval-edit {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for found in pkgutil.iter_modules(commands.__path__):
        if not found.name.startswith("_"):
            command = importlib.import_module(f"{commands.__name__}.{found.name}")
            command.add_parser(subparsers).set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status.

    Args:
        argv: The arguments after the program's name; those of the running program by default.

    Returns:
        What the sub-command says; 1 after a mistake in what the user gave, whose text goes to stderr; 141, as a shell
        has it, if the reader of the output went away (`| head`).
    """
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain about the closed pipe then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
