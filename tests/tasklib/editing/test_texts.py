"""How varied a text is, and how near to reference texts: by hand, and by nltk's own function."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from lm_eval_edit import UserError
from lm_eval_edit.tasklib.editing import snippets, texts
from tests.support.reference_texts import ENTRIES, made

pytest.importorskip("nltk")
pytest.importorskip("sklearn")

UNTRAINED = texts.word_tokenizer(texts.UNTRAINED)


def test_fluency_by_hand():
    # a b a b a: bigrams ab, ba twice each (1 bit); trigrams aba twice, bab once
    h3 = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert texts.fluency(["a b a b a"], str.split) == pytest.approx((2 / 3 * 1 + 4 / 3 * h3) / 2)
    assert texts.fluency(["a b a b a", "one"], str.split) == pytest.approx((2 / 3 * 1 + 4 / 3 * h3) / 4)
    assert texts.fluency(["the the the the"], str.split) == 0.0


def test_the_text_that_is_read():
    assert texts.as_published("a\n\nb<|endoftext|>ﬁn\nc") == "a bfin\nc"


def test_consistency_by_hand(tmp_path):
    found = snippets.read_snippets(made(tmp_path, ENTRIES))
    assert found.joined("P19", "Q84") == "born in London town London" and found.joined("P20", "Q84") is None
    texts_of_all = ["born in London town", "London", "Paris", "in Paris London"]
    idf = {
        word: math.log(5 / (1 + sum(word in text.lower().split() for text in texts_of_all))) + 1
        for word in ("born", "in", "london", "town", "paris")
    }

    def vector(text):
        words = [word for word in text.lower().split() if word in idf]
        return np.array([words.count(word) * idf[word] for word in idf])

    a, b = vector("in london unknown born"), vector("born in London town London")
    wanted = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    ours = texts.consistency(["in london", "unknown born"], "born in London town London", found.vectorizer)
    assert ours == pytest.approx(wanted) and found.weights == "fitted on the snippets"
    assert texts.consistency(["nothing of it"], "London", found.vectorizer) == 0.0


def test_the_published_weights_of_words(tmp_path):
    path = made(tmp_path, ENTRIES)
    np.save(tmp_path / "idf.npy", np.array([1.0, 3.0]))
    with pytest.raises(UserError, match=r"idf.npy is there and tfidf_vocab.json beside it is not"):
        _ = snippets.read_snippets(path).vectorizer
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"paris": 1, "london": 0}))
    found = snippets.read_snippets(tmp_path / "snippets.json")
    assert texts.consistency(["London London Paris"], "London", found.vectorizer) == pytest.approx(2 / math.sqrt(13))
    assert found.weights == "published"
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps({"paris": 2, "london": 0}))
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="should number the 2 words"):
        _ = snippets.read_snippets(path).vectorizer


# -------------------------------------------------------------------------------------------------- the words of nltk


def test_sentences_without_a_model_of_them():
    assert UNTRAINED("It rained. He left.") == ["It", "rained", ".", "He", "left", "."]


def test_nltks_model_is_named_where_it_is_not_there(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    with pytest.raises(UserError, match=r"nltk.downloader punkt_tab .*word_tokenizer=punkt_untrained"):
        texts.word_tokenizer(texts.PUNKT)
    with pytest.raises(UserError, match="word_tokenizer=punct: want punkt or punkt_untrained"):
        texts.word_tokenizer("punct")


def test_with_a_model_it_is_nltks_own_function(monkeypatch, tmp_path):
    """One trained here, that knows an abbreviation."""
    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    trainer = PunktTrainer("The Dr. came. We saw the Dr. and left. A dr. is one. He is a dr. now. " * 20)
    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.parent.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    save_punkt_params(trainer.get_params(), dir=str(folder))
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    try:
        words = texts.word_tokenizer(texts.PUNKT)
        assert words is nltk.word_tokenize
        text = "We saw Dr. Ku. She left."
        assert words(text) == ["We", "saw", "Dr.", "Ku", ".", "She", "left", "."] != UNTRAINED(text)
    finally:
        nltk.tokenize._get_punkt_tokenizer.cache_clear()
