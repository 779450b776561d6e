"""`lm-eval-edit export`: an edited model for other engines, from the ledger of its edits."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_edit._support.terminal import printable
from lm_eval_edit.errors import ConfigurationError

FORMS = {
    "hf": "a checkpoint of its own",
    "peft": "a LoRA adapter, exact for low-rank edits",
    "deltas": "the summed updates as plain tensors",
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `export`."""
    parser = subparsers.add_parser(
        "export",
        help="an edited model for other engines: a checkpoint, a LoRA adapter, plain updates",
        description=(
            "Write the edited model that a ledger (edit_ledger=) stands for, for --model hf, vLLM or other tools. The "
            "export is read back and must answer like the edited model before it appears at its place. docs/engines.md "
            "says which method is exact in which engine."
        ),
    )
    parser.add_argument("ledger", type=Path, metavar="LEDGER", help="the folder that edit_ledger= made")
    parser.add_argument("--to", choices=list(FORMS), help="; ".join(f"{name}: {what}" for name, what in FORMS.items()))
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--check", type=Path, metavar="DIR", help="write nothing; check an export made earlier")
    parser.add_argument("--n_edits", type=int, metavar="K", help="the first K facts; an operation must end there")
    parser.add_argument(
        "--rank", type=int, metavar="R", help="with --to peft: at most rank R, by the best approximation"
    )
    parser.add_argument(
        "--pretrained",
        metavar="MODEL",
        help="the unedited model: demo, smollm2, a folder, a hub id (default: the ledger's)",
    )
    parser.add_argument("--revision", help="its revision on the hub (default: the ledger's)")
    parser.add_argument("--dtype", help="the dtype it was edited in (default: the ledger's)")
    parser.add_argument("--device", help="cpu, cuda:0, ..., or auto for all GPUs (default: cuda if there is one)")
    parser.add_argument(
        "--editor",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="the editor's class, where the run was given one: it is imported only if it is named here",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="as in transformers")
    return parser


def kept(args: argparse.Namespace) -> str:
    """What an interrupted export leaves."""
    return "nothing was written, the ledger is as it was; the same command starts anew"


def run(args: argparse.Namespace) -> int:
    """Export, or check an export, and say what came of it."""
    problems = []
    if args.check is not None:
        given = [f"--{name}" for name in ("to", "output", "n_edits", "rank") if getattr(args, name) is not None]
        problems += [f"{name}: not with --check, the export says it itself" for name in given]
    else:
        problems += [f"--{name} is not given" for name in ("to", "output") if getattr(args, name) is None]
    if args.dtype not in (None, "auto", "float64", "float32", "bfloat16", "float16"):
        problems.append(f"--dtype {args.dtype}: want auto, float32, bfloat16, float16 or float64")
    if problems:
        raise ConfigurationError(problems)

    from lm_eval_edit.export import check, export
    from lm_eval_edit.export.commands import commands, notices
    from lm_eval_edit.export.selfcheck import allowed

    names = ("pretrained", "revision", "dtype", "device", "trust_remote_code")
    common = {name: getattr(args, name) for name in names} | {"editors": args.editor}
    if args.check is not None:
        folder, record = args.check, check(args.ledger, args.check, **common)
    else:
        folder = args.output
        record = export(args.ledger, args.to, folder, n_edits=args.n_edits, rank=args.rank, **common)
    edits, verdict = record["edits"], record["check"]
    _say(f"{folder}: {FORMS[record['to']]}, {edits['n_edits']} edits by {edits['editor']}")
    for name, found in record.get("adapter", {}).get("parameters", {}).items():
        _say(f"  {name}: rank {found['rank']} of {found['true_rank']}, energy kept {found['energy_kept']:.6f}")
    print(
        f"checked on {verdict['prompts']} edited prompts: logits differ by at most {verdict['difference']:.3g} "
        f"({allowed(verdict['tolerance'])}), the edits move them by up to {verdict['effect']:.3g}"
    )
    for notice in notices(record):
        _say(f"note: {notice}")
    for command in commands(record, str(folder)):
        _say(f"evaluate: {command}")
    return 0


def _say(line: str) -> None:
    """Print a line that names what the ledger's files name."""
    print(printable(line))
