"""Collecting second moments: equal to a plain double loop, in one pass, resumable to the last bit, kept."""

from __future__ import annotations

import json
import logging
import random

import numpy
import pytest
import torch

from lm_eval_edit import UserError, edit_model
from lm_eval_edit.models.architecture import Architecture
from lm_eval_edit.moments import collect
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import load_corpus
from lm_eval_edit.moments.second_moments import SecondMoments
from tests.support.decoders import case, every_case
from tests.support.small_corpora import small_batches, small_corpus
from tests.support.tiny import FACTS, TEMPLATES, same_weights, tiny_model, tiny_tokenizer, weights_of

pytestmark = pytest.mark.libraries


@pytest.fixture
def corpus(tmp_path):
    return small_corpus(tmp_path, lines=60, longest=30, blank=10)


@pytest.fixture(autouse=True)
def batches(monkeypatch, tmp_path):
    small_batches(monkeypatch, tmp_path, tokens=64)


def plain(model, tokenizer, architecture, layer, corpus, tokens, max_length):
    """E[k kᵀ], one text and one token after the other, on the full forward pass."""
    order = list(range(len(corpus.texts)))
    random.Random(1).shuffle(order)
    total, count = torch.zeros(architecture.key_size, architecture.key_size, dtype=torch.float64), 0
    seen = []
    projection = model.get_submodule(architecture.down_projections[layer])
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].view(-1, len(total))))
    for index in order:
        ids = tokenizer.encode(corpus.texts[index])[:max_length]
        if not corpus.texts[index].strip():
            continue
        with torch.no_grad():
            model(input_ids=torch.tensor([ids]))
        for key in seen.pop():
            if count < tokens:
                total += torch.outer(key.double(), key.double())
                count += 1
    handle.remove()
    return total / count, count


@pytest.mark.parametrize(("tokens", "max_length"), [(300, 20), (10**6, None)])
def test_equals_a_plain_double_loop(corpus, tokens, max_length):
    model, tokenizer = tiny_model(torch.float64), tiny_tokenizer(bos=True)
    architecture = Architecture.discover(model)
    kept = weights_of(model)
    moments = collect_second_moments(model, tokenizer, [0, 2], corpus, tokens, max_length=max_length, progress=False)
    for layer in (0, 2):
        module = architecture.down_projections[layer]
        wanted, count = plain(model, tokenizer, architecture, layer, corpus, tokens, max_length or 48)
        assert moments.count(module) == count == min(tokens, count)
        assert moments[module].dtype == torch.float64
        torch.testing.assert_close(moments[module], wanted, rtol=1e-12, atol=1e-14)
    assert architecture.down_projections[1] not in moments
    assert same_weights(model, kept) and not model.transformer.h[2].mlp.c_proj._forward_pre_hooks


@every_case
def test_every_architecture(name, corpus):
    model, tokenizer, architecture = case(name)
    moments = collect_second_moments(model, tokenizer, [1], corpus, 200, progress=False)
    wanted, count = plain(model, tokenizer, architecture, 1, corpus, 200, 48)
    module = architecture.down_projections[1]
    torch.testing.assert_close(moments[module].double(), wanted, rtol=1e-4, atol=1e-6)
    assert moments.count(module) == count == 200


def test_half_precision_models_are_summed_in_float32(corpus):
    model = tiny_model(torch.bfloat16)
    module = "transformer.h.1.mlp.c_proj"
    moment = collect_second_moments(model, tiny_tokenizer(), [1], corpus, 300, progress=False)[module]
    exact = collect_second_moments(tiny_model(), tiny_tokenizer(), [1], corpus, 300, progress=False)[module]
    assert moment.dtype == torch.float32 and not torch.equal(moment, exact)
    assert (moment - exact).norm() < 0.02 * exact.norm()


def forwards(model):
    """A list that grows by one with each forward pass."""
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


def test_one_pass_for_all_layers_that_stops_below_the_rest(corpus):
    model = tiny_model()
    Architecture.discover(model)  # looks at what the model keeps, once
    calls = forwards(model)
    top = forwards(model.transformer.h[2])
    collect_second_moments(model, tiny_tokenizer(), [0, 1], corpus, 400, progress=False)
    together = len(calls)
    collect_second_moments(model, tiny_tokenizer(), [0], corpus, 401, progress=False)
    assert 0 < together == len(calls) - together
    assert not top


def test_resumed_equals_uninterrupted_to_the_last_bit(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "SAVE_SECONDS", 0.0)
    common = {"layers": [0, 1], "corpus": corpus, "tokens": 500, "progress": False}
    whole = collect_second_moments(tiny_model(), tiny_tokenizer(), folder=tmp_path / "a", **common)
    calls, model = [], tiny_model()

    def power_cut(module, args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(power_cut)
    with pytest.raises(KeyboardInterrupt):
        collect_second_moments(model, tiny_tokenizer(), folder=tmp_path / "b", **common)
    assert list((tmp_path / "b" / "second_moments").glob("partial-*"))
    again = collect_second_moments(model, tiny_tokenizer(), folder=tmp_path / "b", **common)
    uninterrupted = forwards(fresh := tiny_model())
    collect_second_moments(fresh, tiny_tokenizer(), folder=tmp_path / "c", **common)
    assert len(calls) == len(uninterrupted) + 1, "only the pass that was cut was made again"
    for module in ("transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"):
        assert torch.equal(again[module], whole[module])
    assert not list((tmp_path / "b" / "second_moments").glob("partial-*"))


def test_kept_for_the_next_time_and_for_other_layers(corpus):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    calls = forwards(model)

    def passes(layers, tokens=300, of=corpus, **extra):
        before = len(calls)
        collect_second_moments(model, tokenizer, layers, of, tokens, progress=False, **extra)
        return len(calls) - before

    assert passes([1]) > 0
    assert passes([1]) == 0
    assert passes([0, 1]) > 0 and passes([0, 1]) == 0
    assert passes([1], tokens=301) > 0
    assert passes([1], max_length=10) > 0
    model.transformer.h[1].mlp.c_proj.weight.data.add_(1)  # an edit of layer 1 leaves its keys alone, not those above
    model.transformer.h[2].mlp.c_fc.weight.data.add_(1)
    assert passes([1]) == 0
    model.transformer.h[1].mlp.c_fc.weight.data[0, 0] += 1
    assert passes([1]) > 0 and passes([0]) == 0


def test_few_tokens_are_told_of_and_fewer_than_dimensions_refused(corpus, caplog):
    model, tokenizer, module = tiny_model(), tiny_tokenizer(), "transformer.h.1.mlp.c_proj"
    edit = {"editor": "rome", "options": {"layers": [1], "mom2_adjustment": True}, "progress": False}
    with caplog.at_level(logging.WARNING):
        moments = collect_second_moments(model, tokenizer, [1], corpus, 90, progress=False)
    assert "second moments from 90 tokens, 0.9 for each of the 96 dimensions" in caplog.text
    with pytest.raises(UserError, match=r"c_proj \(.*corpus.txt, 90 tokens\) is from 90 tokens, fewer than its 96"):
        edit_model(model, tokenizer, FACTS[:1], second_moments=moments, context_templates=TEMPLATES, **edit)
    mended = moments.regularised(0.01)
    difference = mended[module] - moments[module]
    torch.testing.assert_close(difference, 0.01 * moments[module].trace() / 96 * torch.eye(96))
    assert moments.regularised(0.0) is moments and mended.count(module) == 90
    ledger = edit_model(model, tokenizer, FACTS[:1], second_moments=mended, context_templates=TEMPLATES, **edit)
    assert ledger.guards["weights_changed"] and "regularised by 0.01" in ledger.extra["second_moments_source"]


def test_layers_the_model_has_not(corpus):
    with pytest.raises(UserError, match="layer 7 is out of range: the model has layers 0 to 2"):
        collect_second_moments(tiny_model(), tiny_tokenizer(), [1, 7], corpus, 100)


def test_a_remaining_time_is_told(corpus, caplog):
    collect_second_moments(tiny_model(), tiny_tokenizer(), [1], corpus, 600, progress=False)
    assert "second moments of transformer.h.1.mlp.c_proj from 600 tokens: about 0 seconds to go" in caplog.text


# -------------------------------------------------------------------------------------------------------------- corpora


def test_corpora_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n"two"\n')
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    for name in ("a.txt", "a.jsonl", "a.json"):
        assert sorted(*load_corpus(str(tmp_path / name)).chunks(10)) == ["one", "two"]
    hashes = {load_corpus(str(tmp_path / name)).sha256 for name in ("a.txt", "a.jsonl", "a.json")}
    assert len(hashes) == 2, "the blank line is part of the order"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "one"}\n{"txt": "two"}', r"corpus.jsonl, record 2: want a text, or a record with a field 'text'"),
        ("\n", "corpus.jsonl holds no text"),
        ("{", "corpus.jsonl, line 1: not JSON"),
    ],
)
def test_broken_corpora(tmp_path, content, message):
    (tmp_path / "corpus.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        load_corpus(str(tmp_path / "corpus.jsonl"))


def test_unknown_corpus_and_no_network():
    with pytest.raises(UserError, match=r"corpus wikitxt: no such text file, .*Did you mean 'wikitext'\?"):
        load_corpus("wikitxt")
    with pytest.raises(UserError, match=r"corpus wikitext could not be fetched from the hub .* Without network, give"):
        load_corpus("wikitext")


# ------------------------------------------------------------------------------------------------- published statistics


def published(folder, layer, moment, count):
    """A file as the ROME authors' `layer_stats` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"transformer.h.{layer}.mlp.c_proj_float32_mom2_100000.npz"
    arrays = {"mom2.constructor": "util.runningstats.SecondMoment()", "mom2.count": count, "sample_size": 100000}
    numpy.savez(path, **arrays, **{"mom2.mom2": (moment * count).numpy()})
    return path


def test_published_files_are_read_one_by_one_or_as_a_folder(tmp_path):
    moment = torch.eye(6)
    one = published(tmp_path / "gpt2" / "wikipedia_stats", 0, moment, 50)
    published(tmp_path / "gpt2" / "wikipedia_stats", 1, 2 * moment, 70)
    name = "transformer.h.{}.mlp.c_proj"
    assert torch.equal(SecondMoments.load(one)[name.format(0)], moment)
    for folder in (tmp_path, tmp_path / "gpt2", tmp_path / "gpt2" / "wikipedia_stats"):
        moments = SecondMoments.load(folder)
        assert name.format(1) in moments and name.format(2) not in moments
        assert torch.equal(moments[name.format(1)], 2 * moment) and moments.count(name.format(1)) == 70
    published(tmp_path / "gpt2-xl" / "wikipedia_stats", 0, moment, 50)
    with pytest.raises(UserError, match=r"has second moments of transformer.h.0.mlp.c_proj twice: .*gpt2-xl"):
        SecondMoments.load(tmp_path)


class Touch:
    """Pickled, it makes a file when it is read carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_that_are_not_second_moments(tmp_path):
    bad = tmp_path / "m_float32_mom2_10.npz"
    numpy.savez(bad, **{"mom2.mom2": numpy.array([Touch(tmp_path / "touched")], dtype=object), "mom2.count": 3})
    with pytest.raises(UserError, match=r"m_float32_mom2_10.npz is not a file of second moments.*allow_pickle=False"):
        SecondMoments.load(bad)["m"]
    assert not (tmp_path / "touched").exists(), "no code was run"
    numpy.savez(bad, other=1)
    with pytest.raises(UserError, match=r"want arrays mom2.mom2 and mom2.count"):
        SecondMoments.load(bad)["m"]
    with pytest.raises(UserError, match=r"an .npz of second moments is called <module>_<dtype>_mom2_<samples>.npz"):
        SecondMoments.load(bad.rename(tmp_path / "other.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no second moments: no file \*_mom2_\*.npz"):
        SecondMoments.load(tmp_path / "empty")
