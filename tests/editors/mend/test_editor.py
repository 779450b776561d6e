"""MEND: equal to the published edit rule, true to its own equations, and safe with other people's archives."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import ConfigurationError, UserError, edit_model
from lm_eval_edit._support.files import save_tensors
from lm_eval_edit.editors.base import EditContext
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.editors.mend.archive import load_archive, save_archive
from lm_eval_edit.editors.mend.batch import easyedit_batch, exact_batch, gradient_factors
from lm_eval_edit.editors.mend.editor import Mend, MendOptions
from lm_eval_edit.editors.mend.network import GradientTransform, MendNetwork, inner_module
from lm_eval_edit.facts.fact import parse_record
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.mend_networks import INNER, SHAPES, trained_network
from tests.support.tiny import FACTS, same_weights, tiny_model, tiny_tokenizer, weights_of


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "mend.safetensors"
    save_archive(path, trained_network().state_dict(), INNER, {})
    return path


def foreign_archive(path: Path, prefix: str = "mend.", **extra) -> Path:
    """An archive as EasyEdit writes it; as MEND's authors do with the prefix `gtn.`."""
    state = trained_network().state_dict()
    state = {name.replace("mend.", prefix, 1) if name.startswith("mend.") else name: t for name, t in state.items()}
    torch.save({"model": state | extra, "opt": None, "lr_opt": None, "val_stats": {}, "step": 1}, path)
    return path


def edit(model, facts, archive, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, "mend", edit_batch_size=len(facts), options={"archive": str(archive)} | options,
        progress=False,
    )  # fmt: skip


def deltas_of(archive, facts=FACTS[:1], dtype=torch.float64, **options):
    ledger = edit(tiny_model(dtype), facts, archive, **options)
    return {name: delta.dense(torch.float64) for name, delta in ledger.operations[0].deltas.items()}


# ----------------------------------------------------------------------------------- parity with the published editors


@pytest.mark.parametrize(("run", "name"), [("MEND", "gpt2-tiny"), ("MEND", "llama-tiny"), ("MENDbatch", "gpt2-tiny")])
def test_equals_the_published_deltas(reference, run, name):
    info = json.loads((reference / "deltas" / f"{run}_{name}.json").read_text())
    theirs = load_file(reference / "deltas" / f"{run}_{name}.safetensors")
    folder = reference / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = info["hparams"] | {"archive": str(reference / "mend_archives" / f"mend_{name}.archive")}
    for call, published in enumerate(info["calls"]):
        facts = [parse_record(info["facts"][index], "reference", str(index)) for index in published["case_ids"]]
        ledger = edit_model(
            model, tokenizer, facts, "mend", edit_batch_size=len(facts), options=options, progress=False
        )
        deltas = ledger.operations[0].deltas
        ledger.restore()
        assert list(deltas) == info["hparams"]["inner_params"]
        for parameter, delta in deltas.items():
            expected = theirs[f"call{call}/delta/{parameter}"].double()
            assert (delta.dense(torch.float64) - expected).norm() / expected.norm() <= 1e-4


# --------------------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("batch", [exact_batch, easyedit_batch])
def test_the_factors_make_up_the_gradient(batch):
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    made = batch(tokenizer, FACTS)
    loss, factors = gradient_factors(model, [inner_module(model, name) for name in INNER], made)
    plain = made.loss(model)
    plain.backward()
    assert loss == pytest.approx(plain.item())
    for name, (u, delta) in zip(INNER, factors, strict=True):
        gradient = torch.einsum("bti,bto->io", u, delta)
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)


def test_an_untrained_network_only_normalises(tmp_path):
    """U = 0 makes every layer the identity: the edit is Σ (u − ū)/σ_u ⊗ (δ − δ̄)/σ_δ, times the step size."""
    network = MendNetwork(INNER[:1], SHAPES[:1], rank=8, edit_lr=0.5)
    generator = torch.Generator().manual_seed(1)
    u, delta = torch.randn(50, 96, generator=generator) * 3 + 2, torch.randn(50, 32, generator=generator)
    network.mend["(96, 32)"].observe(u, delta)
    save_archive(tmp_path / "a", network.state_dict(), INNER[:1], {})
    model = tiny_model(torch.float64)
    batch = exact_batch(tiny_tokenizer(), FACTS[:1])
    _, ((keys, gradient),) = gradient_factors(model, [inner_module(model, INNER[0])], batch)
    keys, gradient = keys[0], gradient[0]
    used = (gradient != 0).any(dim=1)
    keys = (keys[used] - u.mean(0)) / (u.std(0) + 1e-7)
    gradient = (gradient[used] - delta.mean(0)) / (delta.std(0) + 1e-7)
    torch.testing.assert_close(
        deltas_of(tmp_path / "a")[INNER[0]], 0.5 * keys.T @ gradient, rtol=1e-4, atol=1e-5, check_dtype=False
    )


def test_statistics_are_those_of_all_rows_however_they_come():
    generator = torch.Generator().manual_seed(0)
    u, delta = torch.randn(30, 5, generator=generator) + 4, torch.randn(30, 3, generator=generator) * 7
    network = GradientTransform(5, 3, rank=2, modes=1)
    for start, end in ((0, 1), (1, 12), (12, 12), (12, 30)):
        network.observe(u[start:end], delta[start:end])
    for name, rows in (("u", u), ("v", delta)):
        torch.testing.assert_close(getattr(network, f"{name}_mean"), rows.mean(0))
        torch.testing.assert_close(getattr(network, f"{name}_std"), rows.std(0))


def test_editing_keeps_the_trained_statistics(archive):
    mend = Mend(MendOptions(archive=str(archive)))
    model = tiny_model()
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), (), SecondMoments())
    first = mend.compute(context, FACTS[:2])
    kept = {name: buffer.clone() for name, buffer in mend._network.named_buffers()}
    again = mend.compute(context, FACTS[:2])
    assert all(torch.equal(buffer, kept[name]) for name, buffer in mend._network.named_buffers())
    assert not mend._network.training
    for name, delta in first.deltas.items():
        assert torch.equal(delta.dense(), again.deltas[name].dense())


def test_the_rank_is_the_number_of_tokens_and_restore_is_bit_equal(archive):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    kept = weights_of(model)
    ledger = edit(model, FACTS[:2], archive)
    tokens = sum(len(tokenizer.encode(fact.text)) for fact in FACTS[:2])  # one target token each, never an input
    for delta in ledger.operations[0].deltas.values():
        assert delta.rank <= tokens
        assert torch.linalg.matrix_rank(delta.dense(torch.float64)) <= tokens < 32
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, kept[name])]
    assert sorted(changed) == sorted(INNER)
    ledger.restore()
    assert same_weights(model, kept)


def test_computing_an_edit_leaves_the_model_alone(archive):
    model = tiny_model()
    kept, wanted = weights_of(model), [p.requires_grad for p in model.parameters()]
    context = EditContext(model, tiny_tokenizer(), Architecture.discover(model), (), SecondMoments())
    Mend(MendOptions(archive=str(archive))).compute(context, FACTS)
    assert same_weights(model, kept)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_exact_edit_of_a_batch_is_the_sum_of_its_facts_own_edits(archive):
    facts = [FACTS[0], replace(FACTS[3], target_new="Vienna Berlin Oslo")]
    together, first, second = (deltas_of(archive, some) for some in (facts, facts[:1], facts[1:]))
    published = deltas_of(archive, facts, inner_loss="easyedit")
    for name, delta in together.items():
        torch.testing.assert_close(delta, first[name] + second[name])
        assert (published[name] - delta).norm() > 0.01 * delta.norm()


def test_the_exact_loss_is_the_sum_of_the_facts_own_whatever_the_padding():
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer()
    facts = [FACTS[0], replace(FACTS[3], target_new="Vienna Berlin Oslo")]
    alone = [exact_batch(tokenizer, [fact]).loss(model).item() for fact in facts]
    together = exact_batch(tokenizer, facts).loss(model).item()
    assert together == pytest.approx(sum(alone))
    published = [easyedit_batch(tokenizer, [fact]).loss(model).item() for fact in facts]
    assert published == pytest.approx(alone), "one fact without a beginning-of-sequence token has no padding"
    assert easyedit_batch(tokenizer, facts).loss(model).item() != pytest.approx(together, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_get_nearly_the_same_edit(archive, dtype):
    full, half = deltas_of(archive, dtype=torch.float32), deltas_of(archive, dtype=dtype)
    for name, delta in full.items():
        assert (half[name] - delta).norm() < 0.2 * delta.norm()


# ----------------------------------------------------------------------------------------------------------- archives


def test_the_three_kinds_of_archive_give_the_same_edit(tmp_path, archive):
    ours = deltas_of(archive)
    for name, prefix in (("easyedit", "mend."), ("authors", "gtn.")):
        theirs = deltas_of(foreign_archive(tmp_path / name, prefix), inner_params=list(INNER))
        assert all(torch.equal(theirs[parameter], delta) for parameter, delta in ours.items())
    assert load_archive(tmp_path / "easyedit").inner_loss == "easyedit"
    assert load_archive(tmp_path / "authors").inner_loss == "exact"


def test_networks_of_one_weight_each_are_read(tmp_path):
    shared = trained_network()
    state = {"edit_lrs": shared.edit_lrs.detach()}
    for index, name in enumerate(INNER):
        for key, tensor in shared.mend[shared.places[index].key].state_dict().items():
            if "mode_" not in key:
                state[f"mend.{name.replace('.', '#')}.{key}"] = tensor
    torch.save({"model": state}, tmp_path / "unshared")
    deltas = deltas_of(tmp_path / "unshared", inner_params=list(INNER))
    assert list(deltas) == list(INNER) and all(delta.norm() > 0 for delta in deltas.values())


class Calls:
    """Pickles as a call of any function, as malicious files do."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(tmp_path):
    touched = tmp_path / "touched"
    bad = foreign_archive(tmp_path / "bad", model_config=Calls(os.system, f"touch {touched}"))
    with pytest.raises(UserError, match="is refused: it is damaged, or holds more than tensors") as error:
        edit(tiny_model(), FACTS[:1], bad, inner_params=list(INNER))
    assert f"it names {os.system.__module__}.system. Nothing in it has been run" in str(error.value)
    assert not touched.exists()
    torch.load(bad, weights_only=False)
    assert touched.exists(), "the file does run its command when it is read carelessly"


def test_calls_beside_the_tensors_are_not_made_and_calls_in_their_place_are_refused(tmp_path):
    touched = tmp_path / "touched"
    call = Calls(subprocess.call, ["touch", str(touched)])
    beside = foreign_archive(tmp_path / "beside", model_config=call)
    assert load_archive(beside).tensors["edit_lrs"].shape == (4,)
    with pytest.raises(UserError, match="is refused: edit_lrs should be tensors and are not"):
        load_archive(foreign_archive(tmp_path / "inside", edit_lrs=call))
    assert not touched.exists()


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "text").write_text("not an archive at all")
    with pytest.raises(UserError, match="neither a safetensors file nor"):
        load_archive(tmp_path / "text")
    save_archive(tmp_path / "mine", {"a": torch.zeros(1)}, (), {})
    load_archive(tmp_path / "mine")
    save_tensors(tmp_path / "other", {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="is a safetensors file of format None"):
        load_archive(tmp_path / "other")
    (tmp_path / "cut").write_bytes(foreign_archive(tmp_path / "whole").read_bytes()[:5000])
    with pytest.raises(UserError, match="is refused: it is damaged"):
        load_archive(tmp_path / "cut")
    torch.save({"weights": 1}, tmp_path / "weights")
    with pytest.raises(UserError, match="no state dict under 'model'"):
        load_archive(tmp_path / "weights")
    torch.save({"model": {"wte.weight": torch.zeros(1)}}, tmp_path / "gpt")
    with pytest.raises(UserError, match="no edit_lrs and mend"):
        load_archive(tmp_path / "gpt")


def test_an_archive_of_another_shape_is_refused_naming_both(tmp_path):
    network = trained_network(INNER, ((64, 16), (16, 64)) * 2)
    save_archive(tmp_path / "a", network.state_dict(), INNER, {})
    with pytest.raises(UserError, match=r"shape \(16, 64\), \(64, 16\); .*c_proj.weight of this model has \(96, 32\)"):
        edit(tiny_model(), FACTS[:1], tmp_path / "a")


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (INNER[:3], "step sizes for 4 weights; inner_params names 3"),
        ((*INNER[:3], INNER[0]), f"inner_params: {INNER[0]} is there twice; give each linear map once"),
        (
            (*INNER[:3], "transformer.h.0.mlp.c_proj.weight"),
            r"trained for 2 weights of \(in, out\) shape \(32, 96\); inner_params names 1",
        ),
        ((*INNER[:3], "transformer.h.2.mlp.c_f.weight"), "Did you mean 'transformer.h.2.mlp.c_fc.weight'"),
        ((), "does not say which weights it edits"),
    ],
)
def test_wrong_inner_params_are_named(tmp_path, inner, message):
    with pytest.raises(UserError, match=message):
        edit(tiny_model(), FACTS[:1], foreign_archive(tmp_path / "a"), inner_params=list(inner))


def test_an_untrained_or_other_kind_of_network_is_refused(tmp_path):
    save_archive(tmp_path / "a", MendNetwork(INNER, SHAPES, rank=8).state_dict(), INNER, {})
    with pytest.raises(UserError, match="no normalisation statistics: it was never trained"):
        edit(tiny_model(), FACTS[:1], tmp_path / "a")
    state = {name: t for name, t in trained_network().state_dict().items() if "layers.0.u" not in name}
    save_archive(tmp_path / "b", state, INNER, {})
    with pytest.raises(UserError, match="not of the kind that is read here"):
        edit(tiny_model(), FACTS[:1], tmp_path / "b")


@pytest.mark.parametrize("options", [{}, {"archive": "/nowhere/mend"}], ids=["none", "missing"])
def test_without_an_archive_the_message_says_how_to_get_one(options):
    _, (problem,) = resolve(Mend, tiny_model().config, options)
    assert "lm-eval-edit train mend" in problem and "archive=FILE" in problem
    with pytest.raises(ConfigurationError, match="lm-eval-edit train mend"):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], "mend", options=options, progress=False)


def test_a_folder_in_place_of_an_archive_is_named_as_one(tmp_path):
    for read in (load_archive, lambda path: MendOptions(archive=str(path))):
        with pytest.raises(ValueError, match="a folder, where a file is wanted"):
            read(tmp_path)


def test_an_unknown_inner_loss_is_named(archive):
    with pytest.raises(ConfigurationError, match="inner_loss='both': want one of archive, exact, easyedit"):
        edit(tiny_model(), FACTS[:1], archive, inner_loss="both")


def test_a_ledger_belongs_to_the_hypernetwork_not_to_its_place(tmp_path, archive):
    def run(archive):
        return edit_model(
            tiny_model(), tiny_tokenizer(), FACTS[:2], "mend", options={"archive": str(archive)},
            ledger=tmp_path / "ledger", progress=False,
        )  # fmt: skip

    first = run(archive).fingerprint()
    moved = tmp_path / "elsewhere" / archive.name
    moved.parent.mkdir()
    moved.write_bytes(archive.read_bytes())
    assert run(moved).fingerprint() == first
    other = trained_network()
    other.edit_lrs.data *= 2
    save_archive(moved, other.state_dict(), INNER, {})
    with pytest.raises(UserError, match="archive_sha256"):
        run(moved)
