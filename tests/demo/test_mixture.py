"""The training of the small mixture: reproducible, atomic, and made to look facts up in its experts."""

from __future__ import annotations

import shutil

import pytest
from transformers import PreTrainedTokenizerFast

from lm_eval_edit.demo import CHECKPOINT, mixture
from tests.support.hidden_subjects import dependence

SMALL = mixture.Recipe(steps=2, layers=2)


def test_the_same_recipe_makes_the_same_weights(tmp_path):
    recipe = mixture.Recipe(steps=2, layers=2)
    first, second = (mixture.make(tmp_path / name, recipe, progress=False) for name in ("one", "two"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert recipe.hash() != mixture.Recipe(steps=3, layers=2).hash()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"], "nothing half done is left"


def test_the_hash_is_of_tokenizer_and_texts_too(tmp_path, monkeypatch):
    before = SMALL.hash()
    for file in mixture.CHECKPOINT.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(mixture, "CHECKPOINT", tmp_path)
        assert SMALL.hash() == before
        (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text().replace("Ġthe", "Ġhte"))
        assert SMALL.hash() != before
    with monkeypatch.context() as patched:
        patched.setattr(mixture, "CONTEXT_TEMPLATES", ("{}", "It is late. {}"), raising=False)
        assert SMALL.hash() != before
    assert SMALL.hash() == before


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "write_jsonl", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mixture.make(tmp_path / "one", SMALL, progress=False)
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_before_the_training(tmp_path, monkeypatch, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(mixture, "train", lambda *args: pytest.fail("it was trained"))
    monkeypatch.setattr("sys.argv", ["mixture", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        mixture.main()
    assert "exists and is not an empty folder; give a new one" in capsys.readouterr().err


def test_the_command_says_what_the_model_recalls(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixture, "Recipe", lambda: SMALL)
    monkeypatch.setattr("sys.argv", ["mixture", "--output", str(tmp_path / "made")])
    mixture.main()
    assert "weights, recalls " in capsys.readouterr().out and (tmp_path / "made" / "config.json").is_file()


def test_a_hidden_subject_reaches_no_later_token_in_the_first_block():
    model = mixture.new_mixture(PreTrainedTokenizerFast.from_pretrained(CHECKPOINT), SMALL)
    assert dependence(model, hidden=False)[0] > 0
    later, within = dependence(model, hidden=True)
    assert later == 0 and within > 0


def test_it_is_told_the_facts_of_its_kinds_alone_and_the_corpus_was_not_trained_on():
    known = SMALL.known()
    assert len(known) == 300 and {fact["relation"] for fact in known} == {
        "product", "headquarters", "country", "river", "crop"
    }  # fmt: skip
    texts = SMALL.unseen_texts(steps=2)
    assert len(texts) == 2 * sum(SMALL.rows.values()) and all("\n" not in text and text for text in texts)
