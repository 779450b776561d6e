"""Our editors against the published implementations, on the demo model: the oracle that is in every clone."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lm_eval_edit import edit_model
from lm_eval_edit.facts.fact import parse_record
from lm_eval_edit.weights.delta import DenseDelta, LowRankDelta, SparseDelta
from tests.oracle.worlds import world_of

DELTAS = Path(__file__).parents[1] / "oracle" / "deltas"
KINDS = {kind.kind: kind for kind in (DenseDelta, LowRankDelta, SparseDelta)}
#: Run -> (our editor, options beyond the published ones, tolerance).
RUNS = {
    "ROME": ("rome", {}, 1e-8),
    "ROMEcov": ("rome", {}, 1e-2),
    "ROMEseq": ("rome", {}, 1e-8),
    "R-ROME": ("r_rome", {}, 1e-8),
    "MEMIT": ("memit", {}, 1e-6),
    "MEMITbs1": ("memit", {}, 1e-6),
    "EMMET": ("emmet", {}, 1e-6),
    "AlphaEdit": ("alphaedit", {}, 1e-4),
    "SPHERE": ("sphere", {"over": "alphaedit"}, 1e-4),
    "KN": ("kn", {}, 1e-8),
    "FT": ("ft", {}, 1e-8),
    "MEND": ("mend", {"archive": "demo", "inner_loss": "easyedit"}, 1e-4),
}


def published(file: Path) -> dict[str, dict[str, Tensor]]:
    """{"call0": {parameter: ΔW}, ...} of a run."""
    parts: dict[tuple[str, str, str], dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_file(file).items():
        call, kind, name, parameter = key.split("/")
        parts[call, parameter, kind][name] = tensor
    deltas: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (call, parameter, kind), tensors in parts.items():
        deltas[call][parameter] = KINDS[kind](**tensors).dense(torch.float64)
    return deltas


@pytest.mark.parametrize("run", RUNS)
def test_equals_the_published_implementation(run):
    editor, extra, tolerance = RUNS[run]
    [file] = DELTAS.glob(f"{run}_*.json")
    info = json.loads(file.read_text())
    world = world_of(run, getattr(torch, info["dtype"]))
    facts = [parse_record(record, run, "0") for record in info["facts"]]
    ours: dict[str, dict[str, Tensor]] = {}
    for sequence in [[fact] for fact in facts] if info["mode"] == "independent" else [facts]:
        ledger = edit_model(
            world.model, world.tokenizer, sequence, editor,
            edit_batch_size=len(info["calls"][0]["fact_ids"]),
            options=info["hparams"] | {"alg_name": info["alg"]} | extra,
            context_templates=info["context_templates"], second_moments=world.moments, progress=False,
        )  # fmt: skip
        for operation in ledger.operations:
            ours[f"call{len(ours)}"] = {name: delta.dense(torch.float64) for name, delta in operation.deltas.items()}
        ledger.restore()
    theirs = published(file.with_suffix(".safetensors"))
    assert ours.keys() == theirs.keys()
    assert len(theirs) == len(info["calls"]) > 0
    for call, deltas in theirs.items():
        assert {name for name, delta in deltas.items() if delta.norm() > 0} == ours[call].keys()
        for name, delta in deltas.items():
            assert (ours[call][name] - delta).norm() <= tolerance * delta.norm(), (call, name)
