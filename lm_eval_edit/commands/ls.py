"""`lm-eval-edit ls`: what there is to choose from."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import UserError, nearest


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

    designs = {name: read_design(name, {}) for name in preset_names()}
    return columns((name, f"{design.description} [{_source(design)}]") for name, design in designs.items())


def _preset(name: str) -> Iterable[str]:
    from lm_eval_edit.sweep.parsing import preset_names, read_design

    if name not in preset_names():
        raise UserError(f"no preset {name}.{nearest(name, preset_names())} There are {', '.join(preset_names())}")
    design = read_design(name, {})
    counts = design.n_edits or design.n_operations or ()
    tasks = [f"{task} ({n}-shot)" if (n := design.num_fewshot.get(task)) is not None else task for task in design.tasks]
    told = {
        "what": design.description,
        "source": _source(design),
        "models": ", ".join(model.pretrained for model in design.models),
        "editors": ", ".join(
            f"{method.label} ({_batches(method.edit_batch_size or design.edit_batch_size)})"
            for method in design.editors
        ),
        "facts": ", ".join(str(each) for each in design.datasets),
        "checkpoints": f"{', '.join(map(str, counts))} {'edits' if design.n_edits else 'batches'}",
        "tasks": ", ".join(tasks) + ("; through the chat template" if design.apply_chat_template else ""),
        "documents": "all" if design.limit is None else f"{design.limit} of each task",
        "use": f"lm-eval-edit sweep preset:{name} -o DIR [--pretrained MODEL ...] [--editors METHOD ...]; --dry_run",
    }
    return [f"{word:<12}{text}" for word, text in told.items()]


def _batches(sizes: Iterable[int | str]) -> str:
    return ", ".join(
        "one batch" if size == "all" else f"batches of {size}" if size != 1 else "singly" for size in sizes
    )


def _source(design: Any) -> str:
    return design.source or str(design.published.get("source", ""))


LISTINGS = {
    "tasks": Listing("our groups and tasks (`lm_eval ls tasks` lists the harness's as well)", _tasks),
    "options": Listing("the options of `--model edited_hf`, for --model_args", _options),
    "editors": Listing("the editing methods; with a name, all hyper-parameters of that one", _editors, _editor),
    "presets": Listing(
        "designs of `lm-eval-edit sweep`, no hyper-parameters: the panels of the paper's figures 3-8 and other papers' "
        "protocols, each with its source; with a name, what that one does",
        _presets,
        _preset,
    ),
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
    parser.add_argument("name", nargs="?", help="one of them, to be told more about it (editors, presets)")
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
