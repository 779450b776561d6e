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
from itertools import takewhile
from typing import Any, NoReturn

from lm_eval_edit import __version__, commands
from lm_eval_edit._support.interrupts import Terminated, asked, at_work, keep, raise_on_sigterm, tell
from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import UserError, nearest


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that names the nearest accepted word when it refuses one."""

    _given: Sequence[str] = ()

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            raise argparse.ArgumentError(action, error.message + nearest(str(value), action.choices or ())) from None

    def _parse_known_args(self, arg_strings: list[str], *rest: Any) -> Any:
        self._given = list(arg_strings)
        found = super()._parse_known_args(arg_strings, *rest)
        if "-" in self.prefix_chars and (unknown := self._unknown_options()):
            # Told by the sub-command, which knows its options; argparse itself leaves it to the command around.
            self.error("; ".join(unknown))
        return found

    def error(self, message: str) -> NoReturn:
        """As argparse does, an unknown option named beside what it has made go missing."""
        unknown = [line for line in self._unknown_options() if line not in message]
        super().error("; ".join([message, *unknown]))

    def _unknown_options(self) -> list[str]:
        """A sentence for each word that looks like an option and is none of this parser's."""
        known = {text: action for text, action in self._option_string_actions.items() if text.startswith("--")}
        accepted = [text for text, action in known.items() if action.help != argparse.SUPPRESS]  # not old spellings
        words = list(self._given)
        words = words[: words.index("--")] if "--" in words else words
        if self._subparsers is not None:  # what follows the sub-command's name is that one's business
            words = list(takewhile(lambda word: word.startswith("-"), words))
        names = [word.partition("=")[0] for word in words if word.startswith("--")]
        return [
            f"{name}: no such option of {self.prog}.{nearest(name, accepted)}"
            for name in names
            if not any(option.startswith(name) for option in known)
        ]


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
        has it, if the reader of the output went away (`| head`); 130 after Ctrl-C and 143 after SIGTERM, with a line
        that says what is kept.
    """
    args = command = None
    keep(None)  # what an earlier call in this process left is not this one's
    try:
        if argv is None:  # this is the program, not a call from another one
            at_work(start=True)
            raise_on_sigterm()
        args = build_parser().parse_args(argv)
        command = sys.modules[args.run.__module__]
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return _reader_has_gone()
    except SystemExit:
        try:
            sys.stdout.flush()  # of --help
        except BrokenPipeError:
            return _reader_has_gone()
        raise
    except (KeyboardInterrupt, Terminated, Exception) as error:
        if isinstance(error, Exception) and not asked():
            if isinstance(error, UserError):
                print(printable(str(error)), file=sys.stderr)
                return 1
            raise
        kept = getattr(command, "kept", None)
        return tell(error, kept(args) if kept is not None else "nothing was changed; the same command starts anew")


def _reader_has_gone() -> int:
    # Python flushes once more when it ends, and would complain about the closed pipe then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
