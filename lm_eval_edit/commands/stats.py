"""`lm-eval-edit stats`: second moments of a model's MLP keys from a corpus, for the methods that need them."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm_eval_edit._support.terminal import printable
from lm_eval_edit.commands._model_args import add_model_args, parse_model_args
from lm_eval_edit.editors.mixtures import EXPERTS
from lm_eval_edit.errors import UserError
from lm_eval_edit.settings import parse_layers


def add_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Declare `stats`."""
    parser = subparsers.add_parser(
        "stats",
        help="second moments E[k k^T] of MLP keys, which some methods need",
        description=(
            "Compute E[k k^T] of the MLP keys of some layers, in one pass over a corpus. The result is kept in the "
            "cache folder (LM_EVAL_EDIT_CACHE, else ~/.cache/lm_eval_edit), where edit_corpus= with the same corpus "
            "and tokens finds it. An interrupted pass is continued by the same command."
        ),
    )
    add_model_args(parser)
    parser.add_argument("--layers", required=True, help="17, 3-8 or 3:5:7")
    parser.add_argument("--corpus", required=True, help="wikitext, wikipedia, or a text or JSONL file")
    parser.add_argument("--tokens", required=True, type=int, help="how many tokens; ten or more per dimension are good")
    parser.add_argument("--max_length", type=int, help="cut texts to so many tokens (default: the model's context)")
    parser.add_argument(
        "--edit_experts",
        choices=EXPERTS,
        default="shared",
        help="of a mixture with a shared expert: that one (default), or those that the router picks, one moment each",
    )
    parser.add_argument("--output", type=Path, help="also write them to this file, for edit_second_moments=FILE")
    return parser


def kept(args: argparse.Namespace) -> str:
    """What an interrupted pass leaves."""
    return "what the pass has collected is kept in the cache folder; the same command continues it"


def run(args: argparse.Namespace) -> int:
    """Load the model as the harness would, unedited, and collect."""
    try:
        layers = parse_layers(args.layers)
    except ValueError as error:
        raise UserError(f"--layers {args.layers}: {error}") from None
    if layers is None:
        raise UserError(f"--layers {args.layers}: want at least one layer")
    for name in ("tokens", "max_length"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name} {value}: want a whole number of at least 1")
    options = parse_model_args(args.model_args)

    from lm_eval_edit.model import EditedHFLM
    from lm_eval_edit.models.architecture import Architecture
    from lm_eval_edit.moments.collect import collect_second_moments, save_second_moments
    from lm_eval_edit.moments.corpus import load_corpus

    corpus = load_corpus(args.corpus)
    if options.get("editor", "none") != "none":
        raise UserError(f"--model_args editor={options['editor']}: second moments are those of the unedited model")
    lm = EditedHFLM.create_from_arg_obj(options)
    architecture = Architecture.discover(lm.model)
    if args.edit_experts == "routed":
        architecture = architecture.routed()
    moments = collect_second_moments(
        lm.model, lm.tokenizer, layers, corpus, args.tokens, max_length=args.max_length, architecture=architecture
    )  # fmt: skip
    modules = [architecture.down_projections[layer] for layer in layers]
    for module in modules:
        dimensions, picks = moments[module].shape[-1], moments.picks(module)
        source = printable(corpus.source)
        of = "" if picks is None else f"{len(picks)} experts, "
        seen = "" if picks is None else f"; an expert was picked by {int(picks.min())} to {int(picks.max())} of them"
        print(f"{module}: {of}{dimensions} dimensions, {moments.count(module)} tokens of {source}{seen}")
    if args.output:
        about = {"corpus": corpus.source, "corpus_sha256": corpus.sha256, "model": str(options["pretrained"])}
        save_second_moments(args.output, moments, modules, about)
        print(printable(f"written to {args.output}: edit_second_moments={args.output}"))
    return 0
