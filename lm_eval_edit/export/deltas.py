"""Summed updates in a plain form that any tool can read.

    deltas.safetensors   <parameter>.left (rows, r) and <parameter>.right (r, cols): W' = W + left @ right
                         <parameter>.dense, the parameter's shape, where the update is not low rank: W' = W + dense
                         <parameter>.index (m,) int64 with .left (m, rows, r) and .right (m, r, cols), or with .values
                         (m, rows, cols), for experts that a mixture keeps in one parameter (E, rows, cols):
                         W'[index[i]] = W[index[i]] + left[i] @ right[i], or + values[i]; the others stay
    deltas.json          what they belong to, and for each parameter its form, shape, rank and norm

Everything is in the parameter's own layout: (in, out) for GPT-2's Conv1D, (out, in) for nn.Linear. The sum W' is to be
formed in float32 and cast to the model's dtype once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm_eval_edit._support.files import load_tensors, read_json, save_tensors, write_json
from lm_eval_edit.errors import UserError
from lm_eval_edit.weights.delta import Delta, DenseDelta, LowRankDelta
from lm_eval_edit.weights.stacked import SlicesDelta, SliceWise, StackedDelta

FORMAT = "lm-eval-edit deltas 1"
#: Kind of delta: what the index calls it, and its tensors under their names there.
_FORMS: dict[type[Delta], tuple[str, dict[str, str]]] = {
    LowRankDelta: ("low_rank", {"left": "left", "right": "right"}),
    DenseDelta: ("dense", {"value": "dense"}),
    StackedDelta: ("stacked", {"index": "index", "left": "left", "right": "right"}),
    SlicesDelta: ("slices", {"index": "index", "values": "values"}),
}
TENSORS, INDEX = "deltas.safetensors", "deltas.json"


def write_deltas(folder: Path, deltas: Mapping[str, Delta], about: Mapping[str, Any]) -> None:
    """Write both files.

    Args:
        folder: An existing folder.
        deltas: Low-rank or dense, of a parameter or of some slices of it, by parameter.
        about: What the index says beside the parameters, JSON-able.
    """
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {}
    for name, delta in deltas.items():
        form, parts = _FORMS[type(delta)]
        tensors |= {f"{name}.{written}": delta.tensors()[part] for part, written in parts.items()}
        rank = {"rank": delta.rank} if delta.rank is not None else {}
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
        return {name: _read(name, entry, tensors) for name, entry in index["parameters"].items()}
    except KeyError as error:
        raise UserError(f"{folder / TENSORS} has no tensor {error}, which {INDEX} names") from None


def _read(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Delta:
    forms = {form: (kind, parts) for kind, (form, parts) in _FORMS.items()}
    if entry["form"] not in forms:
        raise UserError(f"{INDEX} names form {entry['form']!r} for {name}; this version reads {', '.join(forms)}")
    kind, parts = forms[entry["form"]]
    found = {part: tensors[f"{name}.{written}"] for part, written in parts.items()}
    if issubclass(kind, SliceWise):
        found["size"] = torch.tensor(entry["shape"])
    return kind(**found)
