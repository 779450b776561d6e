"""Summed updates in a plain form that any tool can read.

    deltas.safetensors   <parameter>.left (rows, r) and <parameter>.right (r, cols): W' = W + left @ right
                         <parameter>.dense, the parameter's shape, where the update is not low rank: W' = W + dense
    deltas.json          what they belong to, and for each parameter its form, shape, rank and norm

Everything is in the parameter's own layout: (in, out) for GPT-2's Conv1D, (out, in) for nn.Linear. The sum W' is to be
formed in float32 and cast to the model's dtype once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lm_eval_edit._support.files import load_tensors, read_json, save_tensors, write_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta

FORMAT = "lm-eval-edit deltas 1"
TENSORS, INDEX = "deltas.safetensors", "deltas.json"


def write_deltas(folder: Path, deltas: Mapping[str, Delta], about: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        folder: An existing folder.
        deltas: Low-rank or dense, by parameter.
        about: What the index says beside the parameters, JSON-able.
    """
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {}
    for name, delta in deltas.items():
        form = "low_rank" if isinstance(delta, LowRankDelta) else "dense"
        parts = delta.tensors() if form == "low_rank" else {"dense": delta.tensors()["value"]}
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        rank = {"rank": delta.rank} if form == "low_rank" else {}
        parameters[name] = {"form": form, "shape": list(delta.shape), **rank, "norm": delta.norm()}
    sha256 = save_tensors(folder / TENSORS, tensors, {"format": "pt"})
    write_json(folder / INDEX, {"format": FORMAT, **about, "sha256": sha256, "parameters": parameters})


def read_deltas(folder: Path) -> dict[str, Delta]:
    """What `write_deltas` wrote.

    Raises:
        UserError: another format, or damaged.
    """
    index = read_json(folder / INDEX)
    found = index.get("format") if isinstance(index, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder / INDEX} has format {found!r}; this version reads {FORMAT!r}")
    tensors = load_tensors(folder / TENSORS, index["sha256"])
    try:
        return {
            name: LowRankDelta(tensors[f"{name}.left"], tensors[f"{name}.right"])
            if entry["form"] == "low_rank"
            else DenseDelta(tensors[f"{name}.dense"])
            for name, entry in index["parameters"].items()
        }
    except KeyError as error:
        raise UserError(f"{folder / TENSORS} has no tensor {error}, which {INDEX} names") from None
