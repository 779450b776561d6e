"""Second moments of a mixture's experts: equal to a plain double loop, counted, kept, filled where there are few."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments import collect
from lm_eval_edit.moments.blocks import BlockDiagonal, cholesky_solve, filled, lower_solve, upper_solve
from lm_eval_edit.moments.collect import collect_second_moments, save_second_moments
from lm_eval_edit.moments.files import Estimate
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.mixtures import EXPERTS, every_mixture, mixture_model, plain_key, plain_routing
from tests.support.small_corpora import small_batches, small_corpus
from tests.support.tiny import FACTS, NESTED_TEMPLATES, tiny_tokenizer

pytestmark = pytest.mark.libraries

TOKENS = 50


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path, lines=14, longest=9)


@pytest.fixture(autouse=True)
def batches(monkeypatch, tmp_path):
    small_batches(monkeypatch, tmp_path, tokens=32)


def first_tokens(corpus, tokenizer, tokens):
    """The prefix that ends at each of the corpus' first tokens, in the order of the pass."""
    order = list(range(len(corpus.texts)))
    random.Random(1).shuffle(order)
    prefixes = []
    for index in order:
        ids = tokenizer.encode(corpus.texts[index])
        prefixes += [ids[: end + 1] for end in range(len(ids))]
    return prefixes[:tokens]


@every_mixture
def test_moments_and_counts_equal_a_plain_loop(name, corpus, caplog):
    model, tokenizer = mixture_model(name), tiny_tokenizer()
    architecture = Architecture.discover(model).routed()
    found = collect_second_moments(
        model, tokenizer, [1, 2], corpus, TOKENS, progress=False, architecture=architecture
    )  # fmt: skip
    prefixes = first_tokens(corpus, tokenizer, TOKENS)
    for layer in (1, 2):
        module, f = architecture.down_projections[layer], architecture.key_sizes[layer]
        total, picks = torch.zeros(EXPERTS, f, f, dtype=torch.float64), [0] * EXPERTS
        for ids in prefixes:
            for expert in plain_routing(model, ids, layer)[1].tolist():
                picks[expert] += 1
            for expert, key in enumerate(plain_key(model, ids, layer).view(EXPERTS, f)):
                total[expert] += torch.outer(key, key)
        exact = 1e-5 if name in ("deepseek_v3", "qwen3_next") else 1e-9  # they compute in float32 on the way
        torch.testing.assert_close(found[module], total / TOKENS, rtol=exact, atol=exact)
        assert found.picks(module).tolist() == picks and found.count(module) == TOKENS
        assert f"experts of layer {layer} were picked by fewer than {10 * f} of the {TOKENS} tokens" in caplog.text
    assert sum(picks) == TOKENS * 2


def test_an_interrupted_pass_goes_on_and_files_hold_the_counts(corpus, monkeypatch, tmp_path):
    model, tokenizer = mixture_model("gpt_oss"), tiny_tokenizer()
    module = Architecture.discover(model).down_projections[1]
    whole = collect_second_moments(model, tokenizer, [1], corpus, TOKENS, progress=False, folder=tmp_path / "whole")
    monkeypatch.setattr(collect, "SAVE_SECONDS", -1.0)
    add, calls = collect._Pass._add, []

    def stopping(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(collect._Pass, "_add", stopping)
        collect_second_moments(model, tokenizer, [1], corpus, TOKENS, progress=False)
    again = collect_second_moments(model, tokenizer, [1], corpus, TOKENS, progress=False)
    assert torch.equal(again[module], whole[module]) and torch.equal(again.picks(module), whole.picks(module))
    save_second_moments(tmp_path / "moments.safetensors", again, [module], {})
    read = SecondMoments.load(tmp_path / "moments.safetensors")
    assert torch.equal(read[module], whole[module]) and torch.equal(read.picks(module), whole.picks(module))
    assert torch.equal(read.symmetric(module), whole.symmetric(module)), "filled once, not twice"


def test_an_edit_collects_what_it_needs_once(corpus, tmp_path, caplog):
    model = mixture_model("qwen2_moe")
    architecture = Architecture.discover(model)
    of_shared = collect_second_moments(model, tiny_tokenizer(), [1], corpus, TOKENS, progress=False)
    assert architecture.down_projections[1] in of_shared
    of_routed = collect_second_moments(
        model, tiny_tokenizer(), [1], corpus, TOKENS, progress=False, architecture=architecture.routed()
    )  # fmt: skip
    options = {"layers": [1], "v_num_grad_steps": 3, "edit_experts": "routed"}
    how = {"context_templates": NESTED_TEMPLATES, "progress": False}
    with pytest.raises(UserError, match=r"second moments of model.layers.1.mlp.experts.down_proj"):
        edit_model(model, tiny_tokenizer(), FACTS[:1], "memit", options=options, second_moments=of_shared, **how)
    ledger = edit_model(model, tiny_tokenizer(), FACTS[:1], "memit", options=options, second_moments=of_routed, **how)
    assert [d.kind for d in ledger.operations[0].deltas.values()] == ["stacked"]
    module = architecture.routed().down_projections[1]
    assert ledger.extra["second_moments_picks"] == {module: of_routed.picks(module).tolist()}


def test_rarely_picked_experts_are_filled_up():
    f, picks, tokens = 4, torch.tensor([0, 4, 20, 40, 4000]), 5000
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randn(n, f, generator=generator, dtype=torch.float64) for n in picks.tolist()]
    moment = torch.stack([k.T @ k for k in keys]) / tokens
    scale = float(sum((k**2).sum() for k in keys) / (f * picks.sum())) / tokens
    found = filled(moment, picks)
    added = [4.0, 3.6, 2.0, 0.0, 0.0]  # f - n / 10
    for expert, more in enumerate(added):
        wanted = moment[expert] + more * scale * torch.eye(f, dtype=torch.float64)
        torch.testing.assert_close(found[expert], wanted, rtol=1e-12, atol=0)
    assert torch.equal(found[3:], moment[3:])
    moments = SecondMoments({"m": lambda: Estimate(moment, tokens, picks)})
    torch.linalg.cholesky(moments.symmetric("m"))
    assert torch.equal(moments["m"], moment), "what was measured stays what it was"
    moments.check_count("m")


def test_solves_block_by_block_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 5, 9, generator=generator, dtype=torch.float64)
    moments = SecondMoments({"m": roots @ roots.mT})
    assert moments.is_stacked("m")
    whole, x = torch.block_diag(*moments["m"]), torch.randn(15, 4, generator=generator, dtype=torch.float64)
    x[5:10] = 0
    factor = moments.cholesky("m", 0.2)
    assert isinstance(factor, BlockDiagonal) and len(factor) == 15 and moments.cholesky("m", 0.2) is factor
    dense = torch.linalg.cholesky(whole + 0.2 * torch.eye(15, dtype=torch.float64))
    for found, wanted in (
        (lower_solve(factor, x), torch.linalg.solve_triangular(dense, x, upper=False)),
        (upper_solve(factor, x), torch.linalg.solve_triangular(dense.T, x, upper=True)),
        (cholesky_solve(factor, x), torch.cholesky_solve(x, dense)),
        (factor @ x, dense @ x),
        (factor.T @ x, dense.T @ x),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
        assert not found[5:10].any(), "to the last bit"
    values, vectors = torch.linalg.eigh(whole)
    assert moments.median_eigenvalue(["m"]) == pytest.approx(float(values.median()), rel=1e-12)
    threshold = float((values[6] + values[7]) / 2)
    basis, inside = moments.null_space("m", threshold), vectors[:, values < threshold]
    assert basis.shape == (15, 7)
    torch.testing.assert_close(basis @ (basis.T @ x), inside @ (inside.T @ x), rtol=1e-9, atol=1e-10)
    with pytest.raises(UserError, match="has no eigenvalue below it"):
        moments.null_space("m", float(values[0]) / 2)


def test_regularisation_adds_to_every_expert_alike():
    moments = SecondMoments({"m": torch.stack([torch.eye(3), torch.zeros(3, 3)])})
    with pytest.raises(UserError, match="is not positive definite"):
        moments.cholesky("m")
    found = moments.regularised(0.5)["m"]
    assert torch.equal(found, torch.stack([1.25 * torch.eye(3), 0.25 * torch.eye(3)]))


def test_regularised_moments_keep_their_counts_and_are_filled_once(tmp_path):
    picks = torch.tensor([0, 2, 4000])
    keys = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in picks.tolist()]
    measured = SecondMoments({"m": lambda: Estimate(torch.stack([k.T @ k for k in keys]) / 5000, 5000, picks)})
    used = measured.symmetric("m")
    unit = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    wanted = used + 0.1 * used.diagonal(dim1=-2, dim2=-1).mean() * unit
    regularised = measured.regularised(0.1)
    save_second_moments(tmp_path / "moments.safetensors", regularised, ["m"], {})
    for found in (regularised, SecondMoments.load(tmp_path / "moments.safetensors")):
        torch.testing.assert_close(found.symmetric("m"), wanted, rtol=1e-12, atol=0)
        assert found.count("m") == 5000 and found.picks_record(["m"]) == {"m": [0, 2, 4000]}
    twice = regularised.regularised(0.1).symmetric("m")
    torch.testing.assert_close(twice - wanted, 0.1 * wanted.diagonal(dim1=-2, dim2=-1).mean() * unit)


def test_an_edit_with_regularised_moments_records_the_picks(corpus):
    model = mixture_model("qwen3_moe")
    moments = collect_second_moments(model, tiny_tokenizer(), [1], corpus, TOKENS, progress=False).regularised(0.1)
    ledger = edit_model(
        model, tiny_tokenizer(), FACTS[:1], "memit", options={"layers": [1], "v_num_grad_steps": 3},
        second_moments=moments, context_templates=NESTED_TEMPLATES, progress=False,
    )  # fmt: skip
    module = Architecture.discover(model).down_projections[1]
    assert ledger.extra["second_moments_picks"] == {module: moments.picks(module).tolist()}


def test_every_direction_in_the_null_space_is_told(caplog):
    moments = SecondMoments({"m": torch.eye(2).expand(2, 2, 2)})
    with caplog.at_level(logging.WARNING):
        assert moments.null_space("m", 2.0).shape == (4, 4)
    assert "no direction of ordinary text is protected" in caplog.text
