"""`lm-eval-edit ls`: what there is to choose from."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import UserError


class Listing(NamedTuple):
    """One thing that `ls` can list.

    Args:
        help: One line for `--help`.
        lines: Gives the text; imports what it needs itself.
        one: Gives the text about the one of this name; None where there is nothing more to tell about one.
    """

    help: str
    lines: Callable[[], Iterable[str]]
    one: Callable[[str], Iterable[str]] | None = None


def _tasks() -> Iterable[str]:
    from lm_eval_edit.harness.our_tasks import list_tasks

    entries = list_tasks()
    width = max((len(entry.name) for entry in entries), default=0)
    return [f"{entry.name:<{width}}  {entry.kind:<6}{entry.description}".rstrip() for entry in entries]


def _options() -> Iterable[str]:
    from lm_eval_edit.commands._options import describe_options

    return describe_options()


def _editors() -> Iterable[str]:
    from lm_eval_edit.commands._editors import list_editors

    return list_editors()


def _editor(name: str) -> Iterable[str]:
    from lm_eval_edit.commands._editors import describe_editor

    return describe_editor(name)


def _presets() -> Iterable[str]:
    from lm_eval_edit.commands._layout import columns
    from lm_eval_edit.sweep.parsing import preset_names, read_design

    return columns((name, read_design(name, {}).description) for name in preset_names())


LISTINGS = {
    "tasks": Listing("our groups and tasks (`lm_eval ls tasks` lists the harness's as well)", _tasks),
    "options": Listing("the options of `--model edited_hf`, for --model_args", _options),
    "editors": Listing("the editing methods; with a name, all hyper-parameters of that one", _editors, _editor),
    "presets": Listing("the designs of `lm-eval-edit sweep`: one for each panel of the paper's figures 3-8", _presets),
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `ls`."""
    parser = subparsers.add_parser(
        "ls",
        help=f"list {', '.join(LISTINGS)}",
        description="List what there is to choose from.",
        epilog="\n".join(f"{name}: {listing.help}" for name, listing in LISTINGS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=LISTINGS, help="what to list")
    parser.add_argument("name", nargs="?", help="one of them, to be told more about it (editors)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the list, or what there is to know about one of its members.

    Raises:
        UserError: a name where there is no more to tell, or an unknown one.
    """
    listing = LISTINGS[args.what]
    if args.name is None:
        lines = listing.lines()
    elif listing.one is None:
        raise UserError(f"lm-eval-edit: `ls {args.what}` takes no further name; got {args.name!r}")
    else:
        lines = listing.one(args.name)
    for line in lines:
        print(printable(line))
    return 0
