"""An operation asks the tokenizer for each of its texts once."""

from __future__ import annotations

import pytest

from lm_eval_edit import Fact, edit_model
from lm_eval_edit.facts.tokens import each_text_once, encode, last_token
from tests.support.tiny import tiny_model, tiny_second_moments, tiny_tokenizer


@pytest.fixture
def asked(monkeypatch):
    """(tokenizer, the texts it is asked for, one by one)."""
    tokenizer, texts = tiny_tokenizer(), []
    for name in ("encode", "__call__"):
        own = getattr(type(tokenizer), name)

        def counted(self, text, *args, _own=own, **how):
            texts.append((text, "return_offsets_mapping" in how))
            return _own(self, text, *args, **how)

        monkeypatch.setattr(type(tokenizer), name, counted)
    return tokenizer, texts


def test_a_text_is_tokenised_once_and_what_is_handed_out_is_the_callers(asked, monkeypatch):
    tokenizer, texts = asked
    text = "The mother tongue of Nils Albrecht"
    plain = encode(tokenizer, text), last_token(tokenizer, text, 21, 34)
    texts.clear()
    with each_text_once():
        for _ in range(3):
            found = encode(tokenizer, text)
            assert (found, last_token(tokenizer, text, 21, 34)) == plain
            found.append(0)
        assert len(texts) == len(set(texts))
        before = len(texts)
        assert encode(tiny_tokenizer(bos=True), text) != plain[0], "another tokenizer's are its own"
        monkeypatch.setattr("lm_eval_edit.facts.tokens.REMEMBERED", 1)
        assert encode(tokenizer, "Greta Dumont") and encode(tokenizer, text) == plain[0]
        assert len(texts) > before + 2, "forgotten when there are too many"
    texts.clear()
    encode(tokenizer, text), encode(tokenizer, text)
    assert len(texts) == 2, "nothing is remembered outside"


def test_an_operation_asks_for_each_of_its_texts_once(asked):
    tokenizer, texts = asked
    model = tiny_model()
    options = {"layers": (0, 1), "v_num_grad_steps": 2, "mom2_update_weight": 10.0}
    given = {"context_templates": [["{}"], ["The weather . {}", "Therefore . {}"]], "progress": False}
    moments = tiny_second_moments(model)

    def operations(count):
        texts.clear()
        facts = [Fact(name, "The mother tongue of {}", "Spanish", "Czech", id=name) for name in NAMES[: 2 * count]]
        edit_model(model, tokenizer, facts, "memit", 2, options=options, second_moments=moments, **given).restore()
        return list(texts)

    one, two = operations(1), operations(2)
    rows, facts = 3, 2
    # Of each fact: prompts and what they become with the object, before and once in the check of all facts' lengths;
    # where the subjects end; and "{} is a".
    assert len(two) - len(one) <= facts * (2 * rows + 2 * rows + 2 * rows + 3)


NAMES = ("Nils Albrecht", "Greta Dumont", "Boris Lindqvist", "Rosa Novak")
