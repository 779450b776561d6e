"""`lm-eval-edit ls`: what there is to choose from."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Listing(NamedTuple):
    """One thing that `ls` can list.

    Args:
        help: One line for `--help`.
        rows: Gives a name and one line about it, for each thing in the list; imports what it needs itself.
    """

    help: str
    rows: Callable[[], Iterable[tuple[str, str]]]


def _tasks() -> Iterable[tuple[str, str]]:
    from lm_eval_edit.commands._tasks import list_tasks

    return [(entry.name, f"{entry.kind:<6}{entry.description}".rstrip()) for entry in list_tasks()]


LISTINGS = {
    "tasks": Listing("our groups and tasks (`lm_eval ls tasks` lists the harness's as well)", _tasks),
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
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the names in one column and what they are in the next."""
    rows = list(LISTINGS[args.what].rows())
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        print(f"{name:<{width}}  {about}".rstrip())
    return 0
