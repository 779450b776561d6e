"""Runs of the published implementations, repeated with our editors: tests compare the two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit import edit_model
from lm_eval_edit.facts.fact import Fact, parse_record

MODELS = ("gpt2-tiny", "llama-tiny")


def load_model(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reference model in evaluation mode, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


def load_run(reference: Path, run: str, name: str) -> tuple[dict[str, Any], dict[str, Tensor], list[Fact]]:
    """(how a published run was made, its figures, its facts)."""
    info = json.loads((reference / "deltas" / f"{run}_{name}.json").read_text())
    figures = load_file(reference / "deltas" / f"{run}_{name}.safetensors")
    return info, figures, [parse_record(entry, "reference", str(i)) for i, entry in enumerate(info["facts"])]


def relative_errors(reference: Path, run: str, name: str, editor: str) -> Iterator[tuple[str, float]]:
    """Repeat a published run in float64: ("call/parameter", ‖Δ − Δ_ref‖ / ‖Δ_ref‖) for each delta it has."""
    info, figures, facts = load_run(reference, run, name)
    folder = reference / "models" / name
    model, tokenizer = load_model(folder, torch.float64)
    independent = info["mode"] == "independent"
    ours = {}
    for sequence in [[fact] for fact in facts] if independent else [facts]:
        ledger = edit_model(
            model, tokenizer, sequence, editor,
            edit_batch_size=len(info["calls"][0]["case_ids"]),
            options=info["hparams"] | {"alg_name": info["alg"]},
            context_templates=info["context_templates"],
            second_moments=folder / "second_moments.safetensors",
            progress=False,
        )  # fmt: skip
        ours |= {
            f"call{len(ours) if independent else operation.index}/delta/{parameter}": delta.dense(torch.float64)
            for operation in ledger.operations
            for parameter, delta in operation.deltas.items()
        }
        ledger.restore()
    theirs = {key: tensor for key, tensor in figures.items() if "/delta/" in key}
    assert theirs.keys() == ours.keys()
    for key, delta in theirs.items():
        assert delta.norm() > 0
        yield key, float((ours[key] - delta).norm() / delta.norm())
