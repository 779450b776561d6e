"""Editors inside a chat template: every method that can, where its edit is, and those that say that they cannot."""

from __future__ import annotations

import pytest

from lm_eval_edit import Fact, edit_model
from lm_eval_edit.edits.answers import edit_answers
from lm_eval_edit.edits.guards import summary
from lm_eval_edit.errors import ConfigurationError
from lm_eval_edit.facts.chat import chat_frame, in_chat
from lm_eval_edit.moments.collect import collect_second_moments
from lm_eval_edit.moments.corpus import Corpus
from tests.support.chat_models import SHAPES, chat_model, chat_tokenizer
from tests.support.tiny import same_weights, weights_of

FACTS = [
    Fact("Nils Albrecht", "The mother tongue of {}", "S", "F", id="0", paraphrases=("{} speaks",)),
    Fact("Rosa", "{} was born in", "P", "B", id="1", question="Where was {} born?", paraphrases=("Born was {} in",)),
]
ONE = {"layers": [1], "v_num_grad_steps": 25, "v_lr": 0.5, "v_weight_decay": 0.0, "clamp_norm_factor": 50}
MANY = {**ONE, "layers": [0, 1]}
FLAT = ("{}", "It is so . {}")
NESTED = (("{}",), ("It is so . {}",))
METHODS = {
    "rome": ({**ONE, "mom2_adjustment": False}, FLAT),
    "r_rome": ({**ONE, "mom2_adjustment": False}, FLAT),
    "memit": ({**MANY, "mom2_update_weight": 1}, NESTED),
    "memit_seq": ({**MANY, "mom2_update_weight": 1}, NESTED),
    "encore": ({**MANY, "mom2_update_weight": 1}, NESTED),
    "emmet": (MANY, NESTED),
    "alphaedit": (MANY, NESTED),
    "betaedit": (MANY, NESTED),
    "ft": ({"layers": [1], "num_steps": 40, "lr": 5e-3, "objective_optimization": "target_new"}, None),
    "lora": ({"num_steps": 40, "lr": 5e-3}, None),
    "ultraedit": ({"lr": 1e-2}, None),
    "kn": ({}, None),
    "rect": ({**ONE, "over": "rome", "mom2_adjustment": False}, FLAT),
    "prune": ({**ONE, "over": "rome", "mom2_adjustment": False}, FLAT),
    "sphere": ({**ONE, "over": "rome", "mom2_adjustment": False}, FLAT),
    "random": ({**ONE, "like": "rome", "mom2_adjustment": False}, FLAT),
}


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer(SHAPES["default system"][0], bos=False)


@pytest.fixture(scope="module")
def moments(tokenizer):
    text = " ".join(fact.text for fact in FACTS) + " The weather is fine, as 0123456789 people say in (many) cities."
    return collect_second_moments(
        chat_model(), tokenizer, [0, 1], Corpus((text * 40,), "text", "0"), 2000, progress=False
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_edit_moves_the_answer_inside_the_template(method, tokenizer, moments):
    """The ledger's own figures are of answers inside the template, and those are where the edit is."""
    options, templates = METHODS[method]
    model, frame = chat_model(), chat_frame(tokenizer)
    before = weights_of(model)
    fact = FACTS[1]
    unedited = edit_answers(model, tokenizer, [in_chat(fact, frame)])[0]
    ledger = edit_model(
        model, tokenizer, [fact], editor=method, options=options, context_templates=templates, second_moments=moments,
        chat_template=True, progress=False,
    )  # fmt: skip
    record = ledger.operations[0].record
    assert record["before"] == summary([unedited])
    inside = edit_answers(model, tokenizer, [in_chat(fact, frame)])[0]
    assert record["after"] == summary([inside])
    if method != "random":
        assert inside.log_prob > unedited.log_prob
    assert ledger.operations[0].facts == [fact] and ledger.extra["chat"] == frame.record()
    ledger.restore()
    assert same_weights(model, before)


@pytest.mark.parametrize(
    ("method", "options"), [("mend", {"archive": "x.pt"}), ("easyeditor:ROME", {}), ("random", {"like": "mend"})]
)
def test_methods_that_cannot_say_so(method, options, tokenizer):
    with pytest.raises(ConfigurationError, match=r"edit_chat_template=true: .* cannot edit inside a chat template: "):
        edit_model(chat_model(), tokenizer, FACTS[:1], editor=method, options=options, chat_template=True)


def test_a_tokenizer_without_template_is_told_with_the_other_problems():
    with pytest.raises(ConfigurationError, match="no chat template") as told:
        edit_model(
            chat_model(), chat_tokenizer(None), FACTS[:1], editor="rome", options=ONE | {"layers": [9]},
            edit_batch_size=2, chat_template=True,
        )  # fmt: skip
    assert len(told.value.problems) >= 3


def test_the_direction_of_the_edit(tokenizer):
    """An edit made in one place is there and hardly in the other: the two by two table of docs/chat.md in small.

    ft on a random model overfits the fact in the place where it is made, so that the difference is not by chance.
    """
    model, frame = chat_model(), chat_frame(tokenizer)
    options, _ = METHODS["ft"]
    gained: dict[tuple[bool, bool], float] = {}
    for chat in (False, True):
        for fact in FACTS:
            unedited = [edit_answers(model, tokenizer, [f])[0].log_prob for f in (fact, in_chat(fact, frame))]
            ledger = edit_model(model, tokenizer, [fact], editor="ft", options=options, chat_template=chat)
            edited = [edit_answers(model, tokenizer, [f])[0].log_prob for f in (fact, in_chat(fact, frame))]
            ledger.restore()
            for asked in (False, True):
                gain = edited[asked] - unedited[asked]
                gained[chat, asked] = gained.get((chat, asked), 0.0) + gain / len(FACTS)
    assert gained[True, True] > gained[False, True] + 1
    assert gained[False, False] > gained[True, False] + 1
