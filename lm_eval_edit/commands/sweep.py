"""`lm-eval-edit sweep`: curves. Models x editors x data sets x seeds x checkpoints, edited once, evaluated at each."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from lm_eval_edit._support.terminal import printable
from lm_eval_edit.commands import _engines
from lm_eval_edit.errors import ConfigurationError, UserError

#: Flags that replace a key of the design: flag -> (key, help).
_CHANGES = {
    "editors": ("editors", "methods, each with its options: rome random,like=rome memit,edit_batch_size=all"),
    "datasets": ("datasets", "facts: demo, known_facts, zsre, counterfact, or files"),
    "edit_seeds": ("edit_seeds", "seeds of the order of the facts: 0 1 2"),
    "n_edits": ("n_edits", "checkpoints, as numbers of edits: 0 5 10 20"),
    "n_operations": ("n_operations", "checkpoints, as numbers of batches of edit_batch_size"),
    "edit_batch_size": ("edit_batch_size", "facts edited together; `all`: each checkpoint in one batch"),
    "tasks": ("tasks", "tasks and groups, as lm_eval names them"),
}


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `sweep`."""
    parser = subparsers.add_parser(
        "sweep",
        help="a curve: edit once, evaluate at every checkpoint; resumable",
        description="Edit models step by step and evaluate them at every checkpoint. Each model is loaded once, no "
        "edit is made twice, and running the same command again goes on where it stopped. The design comes from a "
        "preset (`lm-eval-edit ls presets`), a YAML file with the same keys, or flags; flags replace what a file says.",
    )
    parser.add_argument("design", nargs="?", help="a preset's name (preset:NAME too), or a YAML file")
    parser.add_argument("--preset", "--config", dest="named", metavar="NAME", help="the same")
    parser.add_argument("-o", "--output", "--output_path", type=Path, metavar="DIR", help="the folder for all results")
    parser.add_argument(
        "--pretrained", nargs="+", metavar="MODEL", help="models: demo, smollm2, paths or hub ids; label=... too"
    )
    for flag, (_, text) in _CHANGES.items():
        parser.add_argument(f"--{flag}", nargs="+", metavar="VALUE", help=text)
    parser.add_argument("--model_args", "-a", nargs="+", default=[], metavar="name=value", help="options for every row")
    parser.add_argument("--limit", type=int, metavar="N", help="documents per task")
    parser.add_argument("--batch_size", type=int, metavar="N", help="prompts evaluated at a time (default: 32)")
    parser.add_argument(
        "--stop_at_perplexity",
        type=float,
        metavar="RATIO",
        help="stop a row once a fixed text is this many times as perplexing as it was; its other cells are marked",
    )
    for flag, text in (
        ("apply_chat_template", "prompts go through the models' chat templates"),
        ("fewshot_as_multiturn", "examples are turns of the chat"),
    ):
        parser.add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=None, help=text)
    parser.add_argument("--include_path", metavar="DIR", help="a folder with further tasks")
    parser.add_argument("--device", help="cpu, cuda:0, ...; default: a GPU where there is one")
    _engines.add_arguments(parser)
    parser.add_argument(
        "--device_rate",
        choices=("measured", "h100", "a100"),
        help="the device of --dry_run's estimate: measured is the one at hand, which takes a few seconds once "
        "(default: an H100 and the one at hand)",
    )
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="print the cells and an estimate, and stop")
    return parser


def kept(args: argparse.Namespace) -> str:
    """What an interrupted sweep leaves."""
    if args.output is None or args.dry_run:
        return "nothing was written; the same command starts anew"
    return f"every finished cell and every edit is kept in {args.output}; the same command continues there"


def run(args: argparse.Namespace) -> int:
    """Run a sweep. Exit status 0 if every cell is there, 1 if one failed."""
    from lm_eval_edit.sweep.parsing import parse_design, read_design, replaced

    _engines.check_options(args)
    changes = _changes(args)
    named = args.named or args.design
    if args.named and args.design:
        raise UserError(f"two designs are given, {args.design} and {args.named}; give one")
    if named:
        design = read_design(named, changes)
    else:
        missing = [f"--{flag}" for flag in ("pretrained", "editors") if getattr(args, flag) is None]
        if missing:
            raise UserError(f"give a preset, a YAML file, or flags; missing: {', '.join(missing)}")
        design = parse_design(replaced({}, {"name": "sweep", **changes}), "flags")
    if args.output is None and not args.dry_run:
        raise UserError("-o is missing: the folder for the results")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError(
            f"a sweep is one process, WORLD_SIZE={os.environ['WORLD_SIZE']} says there are several; start it without "
            f"accelerate or torchrun, and spread it with --engine ray"
        )
    if not args.dry_run and (finished := _finished(args.output, design)) is not None:
        _write_summary(args.output, finished)  # a run may have been killed just before it
        _say([*_table(finished), "every cell is there: nothing to do", _next(args.output)])
        return 0
    with _no_code_of_files(args, named):
        if args.output is None:  # what a dry run would find in a new folder
            with tempfile.TemporaryDirectory() as nowhere:
                return _run(args, design, Path(nowhere) / "sweep")
        return _run(args, design, args.output)


def _no_code_of_files(args: argparse.Namespace, named: str | None) -> contextlib.AbstractContextManager[None]:
    """A context in which a design that is a file chooses no code: what is imported is named by a flag."""
    if not named:
        return contextlib.nullcontext()
    from lm_eval_edit.editors.named_by_data import names_out_of_data

    words = [word for given in (args.editors or (), args.model_args) for word in given]
    return names_out_of_data([part.rpartition("=")[2] for word in words for part in word.split(",")])


def _finished(output: Path, design: Any) -> Any | None:
    """The sweep in a folder that holds all of this design, found without torch or the harness; else None."""
    from lm_eval_edit.sweep import folder, reading

    if not (output / "sweep.json").is_file() or folder.SweepFolder(output).check(design):
        return None
    sweep = reading.load_sweep(output)
    needed = [cell for _, cell in sweep.cells()]
    if all(cell.status in (folder.DONE, folder.COLLAPSED) for cell in needed):
        return sweep
    return None


def _run(args: argparse.Namespace, design: Any, output: Path) -> int:
    from lm_eval.utils import setup_logging

    setup_logging()
    from lm_eval_edit.sweep import checking, folder, reading
    from lm_eval_edit.sweep.engine import mixed

    engine = _engines.choose(args)
    checked = checking.check(design, folder.SweepFolder(output), dry_run=args.dry_run)
    problems = engine.problems + engine.examine(checked)
    if problems and not args.dry_run:
        raise ConfigurationError(problems)
    for notice in [*checked.notices, *mixed(checked, engine.name)]:
        print(printable(notice), file=sys.stderr)
    if args.dry_run:
        from lm_eval_edit.sweep.estimate import estimate_lines

        _say([*_cells(checked), *engine.lines(checked), *estimate_lines(checked, _rates(args))])
        if problems := [*checked.problems, *problems]:
            raise ConfigurationError(problems)
        return 0
    outcome = engine.compute(checked)
    sweep = reading.load_sweep(output)
    _write_summary(output, sweep)
    _say([*_table(sweep), _told(outcome, output)])
    return 1 if outcome.failed else 0


def _rates(args: argparse.Namespace) -> list[Any]:
    """The devices that the cost is estimated for: those named by --device_rate, else an H100 and the one at hand."""
    from lm_eval_edit.cost.work import DEVICES

    if args.device_rate not in (None, "measured"):
        return [DEVICES[args.device_rate]]
    from lm_eval_edit._support.files import cache_folder
    from lm_eval_edit.cost.measured import device_at_hand

    # A Ray cluster's devices are elsewhere.
    here, now = device_at_hand(args.device if args.engine != "ray" else None, cache_folder())
    print(f"{here.name}: {'measured just now' if now else 'as measured before'}", file=sys.stderr)
    return [here] if args.device_rate == "measured" else [DEVICES["h100"], here]


def _say(lines: list[str]) -> None:
    """Print lines that name what files name: models, tasks, reasons of failures."""
    print(printable("\n".join(lines)))


def _write_summary(output: Path, sweep: Any) -> None:
    from lm_eval_edit.sweep import folder, reading

    folder.write_summary(output, reading.summary_rows(sweep))


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """The design's keys that flags say."""
    changes: dict[str, Any] = {}
    for flag, (key, _) in _CHANGES.items():
        if (values := getattr(args, flag)) is not None:
            changes[key] = _editors(values) if key == "editors" else [w for v in values for w in v.split(",") if w]
    if args.pretrained is not None:
        changes["models"] = [_named(word, "pretrained") for word in args.pretrained]
    for key in (
        "limit", "batch_size", "stop_at_perplexity", "include_path", "apply_chat_template", "fewshot_as_multiturn",
    ):  # fmt: skip
        if (value := getattr(args, key)) is not None:
            changes[key] = value
    if args.model_args:
        from lm_eval_edit.commands._model_args import parse_model_args

        changes["model_args"] = parse_model_args(args.model_args)
    return changes


def _editors(values: list[str]) -> list[Any]:
    return [_named(word, "editor") for word in values]


def _named(word: str, key: str) -> Any:
    """`rome` as it is, `random,like=rome` as a mapping."""
    first, *rest = word.split(",")
    if not rest:
        return word
    if bare := [part for part in rest if "=" not in part]:
        flag = {"editor": "--editors", "pretrained": "--pretrained"}[key]
        raise UserError(
            f"{flag} {word}: {bare[0]} is no option name=value. A comma begins an option of what stands before it; "
            f"several of them are separated by spaces"
        )
    from lm_eval_edit.commands._model_args import parse_model_args

    return {key: first, **parse_model_args([",".join(rest)])}


def _cells(checked: Any) -> list[str]:
    """The rows and cells as text."""
    from lm_eval_edit.sweep.folder import DONE

    cells = checked.cells()
    there = sum(checked.folder.state(cell)[0] == DONE for cell in cells)
    lines = [f"{checked.design.name}: {len(cells)} cells in {len(checked.rows)} rows, {there} of them are there"]
    for model in checked.design.models:
        rows = [row for row in checked.rows if row.model == model]
        lines.append(f"{model.label}: {model.pretrained}, loaded once")
        if checked.baseline(model):
            lines.append("  unedited")
        for row in rows:
            edits = sum(max(counts) for counts in row.schedules())
            how = "each in one batch on the unedited model" if row.at_once else "nested"
            counts = ", ".join(map(str, row.checkpoints))
            lines.append(f"  {row.name}: n_edits {counts} ({how}), {edits} edits in all")
    lines.append(f"tasks: {', '.join(_with_examples(checked))}")
    return lines


def _with_examples(checked: Any) -> list[str]:
    """The tasks with their numbers of examples; the last words are about all of them."""
    design, names = checked.design, [*checked.general, *checked.about_schedule]
    words = [f"{name} ({design.num_fewshot[name]}-shot)" if name in design.num_fewshot else name for name in names]
    return words + (["through the chat template"] if design.apply_chat_template else [])


def _table(sweep: Any) -> list[str]:
    """One line for each row and cell: how it stands, and its headline figures."""
    grouped = {
        task for _, cell in sweep.cells() for tasks in cell.results.get("group_subtasks", {}).values() for task in tasks
    }
    heads = [*sweep.groups(), *(task for task in sweep.tasks() if task not in grouped)][:4]
    lines = []
    for _, cell in sweep.cells():
        where = str(cell.folder.relative_to(sweep.root))
        figures = []
        for name in heads:
            found = cell.value(name, "score") or next(
                (value for metric in cell.metrics(name) if (value := cell.value(name, metric))), None
            )
            if found is not None:
                figures.append(f"{name} {found.value:.3f}")
        state = "" if cell.status == "done" else f"{cell.status or 'missing'}: {cell.reason or 'not computed'}"
        lines.append("  ".join(part for part in (where, *figures, state) if part))
    return lines


def _told(outcome: Any, output: Path) -> str:
    made = f"{len(outcome.statuses)} cells computed, {outcome.kept} kept, {outcome.loads} model loads, "
    made = "\n".join([made + f"{outcome.seconds:.1f} s", *outcome.shared])
    if outcome.failed:
        return (
            f"{made}\nFAILED: {', '.join(outcome.failed)}; the reasons are in their cell.json, the same command tries "
            f"them again"
        )
    return f"{made}\n{_next(output)}"


def _next(output: Path) -> str:
    folder = shlex.quote(str(output))
    return f"lm-eval-edit plot {folder}; lm-eval-edit report {folder}"
