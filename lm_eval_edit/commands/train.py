"""`lm-eval-edit train mend`: make the hypernetwork that `editor=mend` needs."""

from __future__ import annotations

import argparse
from dataclasses import fields

from lm_eval_edit.errors import UserError
from lm_eval_edit.training_settings import MendTrainingSettings


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `train` and its methods."""
    parser = subparsers.add_parser("train", help="train what an editing method needs for a model: mend")
    methods = parser.add_subparsers(dest="method", metavar="method", required=True)
    mend = methods.add_parser(
        "mend",
        help="a MEND hypernetwork",
        description="Train a MEND hypernetwork for a model. Started again with the same arguments, it goes on where it "
        "was stopped.",
    )
    mend.add_argument("--model", default="demo", help="demo, smollm2, a folder or a hub id (default: demo)")
    mend.add_argument("--data", default=None, help="demo, zsre, counterfact or a JSON/JSONL file of facts to train on")
    mend.add_argument("--data-dir", default=None, help="a folder that holds the named data sets")
    mend.add_argument("--output", required=True, help="the archive to write, e.g. mend.safetensors")
    mend.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    mend.add_argument("--dtype", default="auto", help="of the model: auto, float32, bfloat16, float16")
    for f in fields(MendTrainingSettings):
        flag, help = "--" + f.name.replace("_", "-"), f.metadata["help"]
        if isinstance(f.default, tuple):
            mend.add_argument(flag, nargs="+", default=f.default, metavar="NAME", help=help)
        else:
            mend.add_argument(flag, type=type(f.default), default=f.default, help=f"{help} (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    """Load model and facts, train, and say how it went."""
    given = {f.name: getattr(args, f.name) for f in fields(MendTrainingSettings)}
    try:
        settings = MendTrainingSettings(**given | {"inner_params": tuple(given["inner_params"])})
    except ValueError as error:
        raise UserError(f"lm-eval-edit train mend: {error}") from None

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_edit import demo
    from lm_eval_edit.editors.mend_training import train_mend
    from lm_eval_edit.fact_sources import load_facts
    from lm_eval_edit.scheduled import default_dataset

    facts = load_facts(args.data or default_dataset(args.model), args.data_dir)
    source = demo.loadable(args.model)
    if args.dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"--dtype {args.dtype}: want auto, float32, bfloat16 or float16")
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=args.dtype)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {args.model}: cannot be loaded ({str(error).splitlines()[0]})") from None
    model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    record = train_mend(model, tokenizer, facts, args.output, settings)
    best = next(score for score in record["history"] if score["step"] == record["best_step"])
    print(
        f"{args.output}: step {record['best_step']} of {record['steps']}, {best['edited']:.0%} of "
        f"{settings.val_facts} unseen facts edited, {best['kept']:.0%} of unrelated answers kept\n"
        f"Use it with: lm_eval --model edited_hf --model_args pretrained={args.model},editor=mend,archive={args.output}"
    )
    return 0
