"""`lm-eval-edit train`: train what a method needs before it can edit, so far MEND's hypernetworks."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import fields
from typing import Any

from lm_eval_edit.commands._model_args import add_model_args, parse_model_args
from lm_eval_edit.editors.mend.training_settings import MendTrainingSettings
from lm_eval_edit.errors import ConfigurationError, nearest

#: What `--model_args` may say here, under the names of a run's.
_MODEL_ARGS = ("pretrained", "revision", "dtype", "device", "trust_remote_code", "edit_dataset", "data_dir")
#: Flags of earlier versions -> the name that took their place in `--model_args`.
_OLD = {"--model": "pretrained", "--data": "edit_dataset", "--data-dir": "data_dir"}
_DTYPES = ("auto", "float32", "bfloat16", "float16")


class _OldSpelling(argparse.Action):
    """Takes a value under its flag of earlier versions, and remembers to say how it is spelt now."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        now = f"--model_args {_OLD[option_string]}=..." if option_string in _OLD else f"--{self.dest}"
        namespace.old = [*(getattr(namespace, "old", None) or []), f"{option_string} is now {now}"]


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `train` and its methods."""
    parser = subparsers.add_parser("train", help="train what an editing method needs for a model: mend")
    methods = parser.add_subparsers(dest="method", metavar="method", required=True)
    mend = methods.add_parser(
        "mend",
        help="a MEND hypernetwork",
        description="Train a MEND hypernetwork for the model of --model_args pretrained=... (demo, smollm2, a folder "
        "or a hub id; default: demo), on the facts of edit_dataset=... there. Started again with the same arguments, "
        "it goes on where it was stopped.",
    )
    add_model_args(mend)
    mend.add_argument("--output", "-o", required=True, help="the archive to write, e.g. mend.safetensors")
    mend.add_argument("--device", default=None, help="the same as device= in --model_args")
    mend.add_argument("--dtype", default=None, help="the same as dtype= in --model_args: " + ", ".join(_DTYPES))
    for flag, name in _OLD.items():
        mend.add_argument(flag, dest=name, action=_OldSpelling, help=argparse.SUPPRESS)
    for f in fields(MendTrainingSettings):
        _add_setting(mend, f)
    return parser


def _add_setting(parser: argparse.ArgumentParser, f: Any) -> None:
    """One option of the training, under EasyEdit's name for it; the spelling with hyphens is of earlier versions."""
    if isinstance(f.default, tuple):
        how: dict[str, Any] = {"nargs": "+", "metavar": "NAME"}
        text = f.metadata["help"]
    else:
        how, text = {"type": type(f.default)}, f"{f.metadata['help']} (default: {f.default})"
    parser.add_argument(f"--{f.name}", default=f.default, help=text, **how)
    old = "--" + f.name.replace("_", "-")
    if old != f"--{f.name}":
        hidden: dict[str, Any] = {"action": _OldSpelling, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        parser.add_argument(old, dest=f.name, **how, **hidden)


def kept(args: argparse.Namespace) -> str:
    """What an interrupted training leaves."""
    return f"the last checkpoint is kept beside {args.output}; the same command continues from there"


def run(args: argparse.Namespace) -> int:
    """Load model and facts, train, and say how it went."""
    if old := getattr(args, "old", None):
        print(f"note: {'; '.join(old)} (the old spelling still works)", file=sys.stderr)
    given = {f.name: getattr(args, f.name) for f in fields(MendTrainingSettings)}
    options, problems = _model_args(args)
    settings = None
    try:
        settings = MendTrainingSettings(**given | {"inner_params": tuple(given["inner_params"])})
    except ValueError as error:
        problems.append(f"lm-eval-edit train mend: {error}")
    if problems or settings is None:
        raise ConfigurationError(problems)

    from lm_eval_edit.editors.mend.training import inner_params_of, train_mend
    from lm_eval_edit.edits.chosen import model_config
    from lm_eval_edit.edits.opened import without_weights
    from lm_eval_edit.edits.scheduled import default_dataset
    from lm_eval_edit.edits.source import load_source
    from lm_eval_edit.facts.sources import load_facts
    from lm_eval_edit.models.devices import find_device

    pretrained = options["pretrained"]
    device = find_device(options.get("device"), "--device ")
    facts = load_facts(options.get("edit_dataset") or default_dataset(pretrained), options.get("data_dir"))
    trusted = bool(options.get("trust_remote_code"))
    config, _ = model_config(pretrained, options)
    shapes = None
    with contextlib.suppress(ValueError):
        shapes = None if config is None else without_weights(config, trusted)
    if shapes is not None:  # else loading tells
        inner_params_of(shapes, settings)
    model, tokenizer = load_source(
        pretrained, options.get("revision"), options.get("dtype") or "auto", device, trusted
    )  # fmt: skip
    record = train_mend(model, tokenizer, facts, args.output, settings)
    best = next(score for score in record["history"] if score["step"] == record["best_step"])
    print(
        f"{args.output}: step {record['best_step']} of {record['steps']}, {best['edited']:.0%} of "
        f"{settings.val_facts} unseen facts edited, {best['kept']:.0%} of unrelated answers kept\n"
        f"Use it with: lm_eval --model edited_hf --model_args pretrained={pretrained},editor=mend,archive={args.output}"
    )
    return 0


def _model_args(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """What the flags and `--model_args` say about model and facts, and their problems as sentences."""
    options = parse_model_args(args.model_args)
    problems = []
    for name in options:
        if name not in _MODEL_ARGS:
            known = ", ".join(_MODEL_ARGS)
            problems.append(f"--model_args {name}: not for training.{nearest(name, _MODEL_ARGS)} Known are {known}")
    for name in _MODEL_ARGS:
        value = getattr(args, name, None)
        if value is not None and options.setdefault(name, value) != value:
            problems.append(f"{name} is given twice, as {options[name]} and as {value}; give one")
    if options.get("dtype") not in (None, *_DTYPES):
        problems.append(f"--dtype {options['dtype']}: want {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}")
    return {"pretrained": "demo"} | {name: value for name, value in options.items() if name in _MODEL_ARGS}, problems
