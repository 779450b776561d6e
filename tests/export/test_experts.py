"""Exports of edited experts: a checkpoint and plain deltas hold them exactly, an adapter is refused before any work."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lm_eval_edit import ConfigurationError, edit_model
from lm_eval_edit.errors import UserError
from lm_eval_edit.export import export, writing
from lm_eval_edit.export.deltas import read_deltas
from lm_eval_edit.export.sums import DeltaSum
from lm_eval_edit.export.writing import check
from lm_eval_edit.weights.delta import DenseDelta
from lm_eval_edit.weights.edited import EditedWeights
from lm_eval_edit.weights.stacked import SlicesDelta, StackedDelta
from tests.support.editors import DOWN
from tests.support.export_world import load, logits
from tests.support.mixtures import ROUTED, mixture_model
from tests.support.tiny import FACTS, TEMPLATES, save_tiny, tiny_tokenizer

pytestmark = pytest.mark.libraries

EDITORS = {"stacked": "tests.support.editors:Experts", "slices": "tests.support.editors:ExpertSlices"}
TEXTS = [fact.text for fact in FACTS]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint of each kind of mixture; ledgers `<kind of delta>-<mixture>`, and what the edited model answers."""
    folder, answers = tmp_path_factory.mktemp("experts"), {}
    for name in ROUTED:
        save_tiny(folder / name, mixture_model(name, torch.float32))
        for kind, editor in EDITORS.items():
            model = load(folder / name)
            edit_model(
                model, tiny_tokenizer(), FACTS, editor, context_templates=TEMPLATES, ledger=folder / f"{kind}-{name}",
                progress=False,
            )  # fmt: skip
            answers[f"{kind}-{name}"] = logits(model, tiny_tokenizer(), TEXTS)
    return folder, answers


def exported(world, kind, name, to, output):
    folder, _ = world
    return export(
        folder / f"{kind}-{name}", to, output, pretrained=str(folder / name), editors=[EDITORS[kind]], device="cpu"
    )


@pytest.mark.parametrize("name", ROUTED)
def test_a_checkpoint_gives_the_edited_models_logits(world, tmp_path, name):
    exported(world, "stacked", name, "hf", tmp_path / "out")
    found = logits(load(tmp_path / "out"), tiny_tokenizer(), TEXTS)
    assert torch.equal(found, world[1][f"stacked-{name}"])
    assert (found - logits(load(world[0] / name), tiny_tokenizer(), TEXTS)).abs().max() > 1e-2
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {DOWN} (4 experts) |" in card and "lm_eval --model vllm" in card
    checked = check(world[0] / f"stacked-{name}", tmp_path / "out", pretrained=str(world[0] / name),
                    editors=[EDITORS["stacked"]])  # fmt: skip
    assert checked["check"]["difference"] == 0


@pytest.mark.parametrize("kind", EDITORS)
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_plain_deltas_are_the_whole_update_of_those_experts(world, tmp_path, kind, name):
    exported(world, kind, name, "deltas", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "deltas.json").read_text())["parameters"][DOWN]
    assert index["form"] == kind and index["shape"] == list(load(world[0] / name).get_parameter(DOWN).shape)
    tensors = load_file(tmp_path / "out" / "deltas.safetensors")
    model = load(world[0] / name)
    by_hand = model.get_parameter(DOWN).detach().clone()
    for i, expert in enumerate(tensors[f"{DOWN}.index"].tolist()):
        by_hand[expert] += (
            tensors[f"{DOWN}.values"][i] if kind == "slices"
            else tensors[f"{DOWN}.left"][i] @ tensors[f"{DOWN}.right"][i]
        )  # fmt: skip
    with torch.no_grad():
        model.get_parameter(DOWN).copy_(by_hand)
    torch.testing.assert_close(logits(model, tiny_tokenizer(), TEXTS), world[1][f"{kind}-{name}"], rtol=0, atol=1e-3)
    again = load(world[0] / name)
    EditedWeights(again).apply(read_deltas(tmp_path / "out"))
    torch.testing.assert_close(again.get_parameter(DOWN).detach(), by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", EDITORS)
@pytest.mark.parametrize("rank", [None, 8])
def test_an_adapter_is_refused_before_a_model_loads(world, tmp_path, monkeypatch, kind, rank):
    monkeypatch.setattr(writing, "load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigurationError) as error:
        export(world[0] / f"{kind}-qwen3_moe", "peft", tmp_path / "out", rank=rank, editors=[EDITORS[kind]],
               pretrained=str(world[0] / "qwen3_moe"))  # fmt: skip
    (problem,) = error.value.problems
    assert DOWN in problem and "all experts in one parameter" in problem and "to=hf" in problem
    assert not (tmp_path / "out").exists()


def test_a_form_that_this_version_does_not_know_is_named(world, tmp_path):
    exported(world, "stacked", "qwen3_moe", "deltas", tmp_path / "out")
    file = tmp_path / "out" / "deltas.json"
    index = json.loads(file.read_text())
    index["parameters"][DOWN]["form"] = "tensor_train"
    file.write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"names form 'tensor_train' for model.layers.1.*low_rank, dense, stacked, slices"
    ):
        read_deltas(tmp_path / "out")


def test_sums_of_updates_of_experts():
    size, generator = torch.tensor([5, 7, 3]), torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    low = StackedDelta(torch.tensor([4, 1]), drawn(2, 7, 2), drawn(2, 2, 3), size)
    more = StackedDelta(torch.tensor([1, 0]), drawn(1, 7, 1), drawn(2, 1, 3), size)
    dense = SlicesDelta(torch.tensor([2, 1]), drawn(2, 7, 3), size)
    whole = DenseDelta(drawn(5, 7, 3))
    cases = (([low, more], StackedDelta), ([low, dense, more], SlicesDelta), ([low, whole, more], DenseDelta))
    for terms, kind in cases:
        total = DeltaSum((5, 7, 3), torch.float64, torch.device("cpu"))
        for term in terms:
            total.add(term)
        assert type(total.delta()) is kind and total.is_low_rank == (kind is StackedDelta)
        torch.testing.assert_close(total.delta().dense(torch.float64), sum(t.dense(torch.float64) for t in terms))
    cancelled = DeltaSum((5, 7, 3), torch.float64, torch.device("cpu"))
    for factor in (1, -1):
        cancelled.add(StackedDelta(low.index, factor * low.left, low.right, size))
    assert cancelled.delta().norm() < 1e-12
