"""Which cells of a served sweep are adapters and which checkpoints: what the dry run says, and what it comes to."""

from __future__ import annotations

import shutil

import pytest
import torch

from lm_eval_edit.sweep import routes, serving, vllm_engine
from lm_eval_edit.sweep.edited_rows import EditedRows
from lm_eval_edit.sweep.prepared import WaitingRoom
from lm_eval_edit.sweep.preparing import Preparer
from tests.support import stand_in_vllm
from tests.support.mixtures import mixture_model
from tests.support.served_sweeps import ROME, checked_sweep, design_of, make_world
from tests.support.tiny import tiny_tokenizer

pytestmark = pytest.mark.usefixtures("tasks_at_hand")

#: Label -> what edits, and which experts of a mixture that has a shared one.
ROWS = {
    "routed": {"editor": "rome", "edit_experts": "routed", **ROME},
    "shared": {"editor": "rome", "edit_experts": "shared", **ROME},
    "trained": {"editor": "ft", "edit_experts": "routed", "num_steps": 2},
    "lora": {"editor": "lora", "num_steps": 2},
}
EXPERTS = (
    "model.layers.1.mlp.experts.down_proj holds the matrices of all experts in one parameter, and an adapter, as this "
    "package writes and vLLM reads it, changes the weight matrices of linear maps only"
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A world whose model has routed experts and a shared one in every layer."""
    model = mixture_model("qwen2_moe", torch.float32, vocab_size=len(tiny_tokenizer()), max_position_embeddings=96)
    return make_world(tmp_path_factory.mktemp("mixture"), model)


def lines_of(checked, **more) -> list[str]:
    return [line.strip() for line in routes.route_lines(checked, **more)]


def test_the_experts_that_a_row_edits_decide_and_not_those_that_its_model_has(vllm, mixture, tmp_path):
    editors = [{"label": label, **row} for label, row in ROWS.items()]
    checked = checked_sweep(mixture, tmp_path / "sweep", editors=editors, n_edits=[1], tasks=["toy_likely"])
    said = lines_of(checked)
    assert "one engine: unedited, 1 LoRA adapters (max_lora_rank 1; tiny/shared-facts-file_order/n00001)" in said
    assert (
        f"checkpoint, an engine of its own for each ({EXPERTS}): "
        "tiny/routed-facts-file_order/n00001, tiny/trained-facts-file_order/n00001"
    ) in said
    assert any("what rank the updates of lora have shows then): tiny/lora-" in line for line in said)
    # What the updates come to, and for the same reasons.
    (model,), room = checked.design.models, WaitingRoom(checked.folder)
    rows = EditedRows(Preparer(checked, model, "cpu", room, None), lambda cell, status: pytest.fail(status))
    found = {}
    for row in checked.rows:
        (cell,) = checked.edited(row)
        rows.edit(row, [cell])
        waits = room.read(cell)
        found[row.method.label] = (waits.kind, waits.record["why"])
    assert found == {
        "routed": ("checkpoint", EXPERTS),
        "shared": ("adapter", None),
        "trained": ("checkpoint", EXPERTS),
        "lora": ("adapter", None),
    }


def test_the_updates_of_a_row_are_summed_one_after_another(vllm, served_world, tmp_path, monkeypatch):
    from lm_eval_edit.sweep import preparing

    summed, given = preparing.sum_deltas, []

    def looking(deltas, *others):
        given.append(deltas)
        return summed(deltas, *others)

    monkeypatch.setattr(preparing, "sum_deltas", looking)
    editors = design_of(served_world)["editors"][:1]
    checked = checked_sweep(served_world, tmp_path / "sweep", editors=editors, n_edits=[2], tasks=["toy_likely"])
    (model,), room = checked.design.models, WaitingRoom(checked.folder)
    rows = EditedRows(Preparer(checked, model, "cpu", room, None), lambda cell, status: pytest.fail(status))
    (row,) = checked.rows
    rows.edit(row, checked.edited(row))
    assert len(given) == 1 and all(iter(deltas) is deltas for deltas in given), "never all of them in memory"


def test_what_waits_and_cannot_be_served_now_is_told_as_what_it_will_be(vllm, served_world, tmp_path):
    editors = design_of(served_world)["editors"][:1]
    checked = checked_sweep(served_world, tmp_path / "sweep", editors=editors, n_edits=[1], tasks=["toy_likely"])
    how = serving.Serving({}, "cpu", stand_in_vllm.VERSION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in_vllm, "RANKS", ())  # no engine starts, and what was edited waits
        assert len(vllm_engine.run_sweep(checked, how, progress=False).failed) == 2
    cell = "tiny/rome-facts-file_order/n00001"
    assert f"one engine: unedited, 1 LoRA adapters (max_lora_rank 1; {cell})" in lines_of(checked)
    said = lines_of(checked, on_gpu=True)  # a float32 model
    (line,) = [line for line in said if cell in line]
    assert line.startswith("checkpoint, an engine of its own for each") and "on a GPU is for float16" in line
    assert "unedited: an engine of its own" in said


def test_the_unedited_model_is_named_while_its_cell_is_open(vllm, served_world, tmp_path):
    root = tmp_path / "sweep"
    changes = {"editors": design_of(served_world)["editors"][:1], "n_edits": [1], "tasks": ["toy_likely"]}
    checked = checked_sweep(served_world, root, **changes)
    assert not vllm_engine.run_sweep(checked, serving.Serving({}, "cpu", stand_in_vllm.VERSION), progress=False).failed
    assert lines_of(checked)[1:] == ["every cell is there"]
    shutil.rmtree(root / "tiny/rome-facts-file_order/n00001")
    one = "1 LoRA adapters (max_lora_rank 1; tiny/rome-facts-file_order/n00001)"
    assert lines_of(checked)[1] == f"one engine: {one}"
    shutil.rmtree(root / "tiny/unedited")
    assert lines_of(checked)[1] == f"one engine: unedited, {one}"
