"""What must hold on a CUDA device: the CPU's edits, its own bits back, and no more rounding than the dtype's.

Run on a machine with a device: `pytest -m gpu`. Speed and memory are benchmarks/gpu.py's business.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.editing import relative_error
from benchmarks.gpu_models import default_inner_params, make_archive
from lm_eval_edit import EditedHFLM, edit_model
from lm_eval_edit.editors.base import EditContext, find_editor
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from lm_eval_edit.weights.edited import EditedWeights, model_fingerprint
from tests.support.tiny import (
    FACTS,
    NESTED_TEMPLATES,
    TEMPLATES,
    same_weights,
    tiny_model,
    tiny_second_moments,
    tiny_tokenizer,
    weights_of,
)

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is false: no CUDA device"),
]

_TARGET = {"layers": (0, 1), "v_num_grad_steps": 8}
_BATCH = {**_TARGET, "mom2_update_weight": 0.1}
EDITORS = {
    "rome": {**_TARGET, "mom2_adjustment": True}, "r_rome": _TARGET, "memit": _BATCH, "emmet": _BATCH,
    "alphaedit": {**_TARGET, "nullspace_threshold": 0.1}, "kn": {"steps": 8}, "mend": {}, "ft": {"num_steps": 4},
    "lora": {"num_steps": 4, "lora_dropout": 0.0}, "rect": _TARGET, "prune": {**_BATCH, "over": "memit"},
    "betaedit": {**_TARGET, "nullspace_threshold": 0.1},
    "ultraedit": {"layers": (0, 1), "lr": 1e-3}, "sphere": {**_BATCH, "over": "memit"}, "random": _TARGET,
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    config, file = tiny_model().config, tmp_path_factory.mktemp("mend") / "archive"
    make_archive(config, default_inner_params(config), file)
    return file


def editor_of(name, config, archive):
    options = EDITORS[name] | ({"archive": str(archive)} if name == "mend" else {})
    resolved, problems = resolve(find_editor(name), config, options)
    assert not problems
    return resolved.editor


def deltas_on(device, name, archive, dtype=torch.float64):
    """The deltas of one operation, its model, and what the model's weights were."""
    model = tiny_model(dtype).to(device)
    editor = editor_of(name, model.config, archive)
    plan = editor.template_plan()
    templates = [] if plan is None else NESTED_TEMPLATES if plan.nested else TEMPLATES
    moments = tiny_second_moments(tiny_model(torch.float64))  # on the CPU, as from a file
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), templates, SecondMoments(moments))
    kept = weights_of(model)
    facts = FACTS[:2] if find_editor(name).edits_batches(EDITORS[name]) else FACTS[:1]
    deltas = editor.compute(context, facts).deltas
    assert same_weights(model, kept), "an editor is pure"
    return deltas, model, kept


@pytest.mark.parametrize("name", EDITORS)
def test_the_deltas_are_those_of_the_cpu(name, archive):
    on_cpu, on_device = (deltas_on(device, name, archive)[0] for device in ("cpu", DEVICE))
    dense = [{n: d.dense(torch.float64, "cpu") for n, d in deltas.items()} for deltas in (on_device, on_cpu)]
    assert all(tensor.norm() > 0 for tensor in dense[1].values())
    assert relative_error(*dense) < 1e-8


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_applied_on_the_device_it_loses_no_more_than_the_dtypes_rounding_and_is_restored_to_the_bit(
    name, dtype, archive
):
    deltas, model, kept = deltas_on(DEVICE, name, archive, dtype)
    fingerprint = model_fingerprint(model)
    weights = EditedWeights(model)
    weights.apply(deltas)
    assert not weights.problems() and not same_weights(model, kept) and model_fingerprint(model) != fingerprint
    for entry in weights.report().values():
        lost = entry["rounding_loss"] * entry["delta_norm"]
        # Each weight is off by at most half a unit in its last place, or by float16's smallest number.
        unit = torch.finfo(dtype).eps / 2
        assert lost <= unit * (entry["weight_norm"] + entry["delta_norm"]) + 1e-5
        assert (lost == 0) == (dtype == torch.float32)
    weights.restore()
    assert same_weights(model, kept) and model_fingerprint(model) == fingerprint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_models_fingerprint_is_the_same_on_both_devices(dtype):
    model = tiny_model(dtype)
    on_cpu = model_fingerprint(model)
    assert model_fingerprint(model.to(DEVICE)) == on_cpu
    with torch.no_grad():
        next(model.parameters()).flatten()[3] += 1
    assert model_fingerprint(model) != on_cpu


def test_a_schedule_edits_and_restores_on_the_device(tmp_path):
    model = tiny_model().to(DEVICE)
    kept = weights_of(model)
    common = {"options": _TARGET, "context_templates": TEMPLATES, "progress": False, "ledger": tmp_path / "ledger"}
    ledger = edit_model(model, tiny_tokenizer(), FACTS[:2], "rome", **common)
    edited = weights_of(model)
    ledger.restore()
    assert same_weights(model, kept)
    edit_model(model, tiny_tokenizer(), FACTS[:2], "rome", **common)  # replayed
    assert same_weights(model, edited)


def test_the_demo_is_edited_on_the_device():
    lm = EditedHFLM(device=DEVICE, editor="rome", n_edits=2)
    record = lm.edit_record()
    assert record["guards"]["answers_changed"] > 0
    assert record["weights_fingerprint"] != record["unedited_fingerprint"]
    lm.restore()
    assert model_fingerprint(lm.model) == record["unedited_fingerprint"]
