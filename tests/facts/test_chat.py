"""A fact inside a chat template: what stands around it, where its subject is, where its object begins."""

from __future__ import annotations

import pytest

from lm_eval_edit import Fact
from lm_eval_edit.editors._shared.rows import essence_row, fact_rows
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.chat import changed_turns, chat_frame, in_chat, placed, said
from lm_eval_edit.facts.fact import Probe
from lm_eval_edit.facts.tokens import encode
from tests.support.chat_models import SHAPES, UNUSABLE, chat_tokenizer

FACTS = [
    Fact("Nils Albrecht", "The mother tongue of {} is", "Spanish", "French", id="0"),
    Fact("Nils Albrecht", "Nils Albrecht", "a tailor", id="1"),  # subject alone: both its ends are the turn's
    Fact("法国", "{}的首都是", "里昂", "巴黎", id="2"),
    Fact("باريس", "تقع {} في", "إيطاليا", "فرنسا", id="3"),
    Fact("กรุงเทพ", "{} คือเมืองหลวงของ", "ลาว", id="4"),
    Fact("user", "The word {} means", "person", id="5"),  # a word of the template too
    Fact("dict{}", "In {x}, dict{} is called", "a map", id="6", subject_at=8),
    Fact("Rome", "{} is in", "Spain", id="7", question="In which country is {}?"),
    Fact("Rome", "{} is in", "Spain", id="8", question="In which country is it?"),  # names no subject
]


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.mark.parametrize("bos", [False, True])
def test_the_text_is_what_the_harness_renders(shape, bos):
    tokenizer = chat_tokenizer(shape[0], bos)
    frame = chat_frame(tokenizer)
    assert (frame.before, frame.after) == shape[1:]
    assert not changed_turns(tokenizer, frame, FACTS, {})
    for fact in FACTS:
        turn = [{"role": "user", "content": said(fact)}]
        placed_fact = in_chat(fact, frame)
        assert placed_fact.text == tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert placed_fact.target == fact.target_new and placed_fact.subject == fact.subject
        assert placed_fact.problem() is None and placed_fact.record() == fact.record()
        ids = encode(tokenizer, placed_fact.text)
        assert ids.count(1) == (
            1 if bos or "bos_token" in shape[0] else 0
        )  # one <s>, the template's or the tokenizer's


@pytest.mark.parametrize("context", ["{}", "The weather is fine . {}", "\n {}"])
def test_the_subjects_last_token_is_its_own(shape, context):
    """Every byte is a token: the text up to the subject's last one ends with the subject, within the user's turn."""
    tokenizer = chat_tokenizer(shape[0])
    frame = chat_frame(tokenizer)
    for fact in FACTS:
        place = in_chat(fact, frame)
        for row in (*fact_rows(tokenizer, place, [context]), essence_row(tokenizer, place)):
            read = tokenizer.decode(row.ids[: row.subject_last + 1])
            assert read.endswith(fact.subject) and read.removeprefix("<s>").startswith(frame.before.removeprefix("<s>"))
            if not row.labels:
                continue
            prompt = tokenizer.decode(row.ids[: len(row.ids) - len(row.labels) + 1])
            left = context.split("{}")[0]
            left = left.lstrip() if frame.trims in ("both", "left") else left
            wanted = frame.before + left + said(fact) + frame.after
            assert prompt.removeprefix("<s>") == wanted.removeprefix("<s>")
            assert tokenizer.decode(list(row.labels)) == fact.target_new


def test_the_question_is_asked_where_it_names_the_subject():
    assert [said(fact) for fact in FACTS[-2:]] == ["In which country is Rome?", "Rome is in"]
    assert said(Fact("", "Who wrote it?", "Nils")) == "Who wrote it?"


def test_a_fact_without_subject():
    tokenizer = chat_tokenizer(SHAPES["BOS, trims"][0])
    fact = in_chat(Fact("", " Who wrote it? ", "Nils", id="0"), chat_frame(tokenizer))
    assert fact.text == "<s><|start|>user<|mid|>\n\nWho wrote it?<|end|><|start|>assistant<|mid|>\n\n"
    assert (fact.target, fact.problem()) == ("Nils", None)


def test_paraphrases_and_probes_stand_in_the_template_too():
    tokenizer = chat_tokenizer(SHAPES["brackets"][0])
    fact = Fact(
        "Rome", "{} is in", "Spain", id="0", paraphrases=("Where is {}?",), locality=(Probe("Oslo is in", "x"),)
    )
    place = in_chat(fact, chat_frame(tokenizer))
    assert place.paraphrases == ("<s>[INST] Where is Rome? [/INST]",)
    assert place.locality[0].prompt == "<s>[INST] Oslo is in [/INST]"
    assert place.continuing("anything", " Spain") == "Spain"


def test_facts_as_they_are_without_a_frame():
    assert placed(FACTS, None) == FACTS


@pytest.mark.parametrize("name", UNUSABLE)
def test_templates_that_nobody_can_edit_in(name):
    template, message = UNUSABLE[name]
    with pytest.raises(UserError, match=message):
        chat_frame(chat_tokenizer(template))


def test_no_template():
    with pytest.raises(UserError, match="has no chat template"):
        chat_frame(chat_tokenizer(None))


def test_a_template_that_reads_what_is_said_is_found_out():
    """Qwen's and DeepSeek's look for marks of thinking in a turn and cut there."""
    template = "{% for m in messages %}<|start|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}"
    tokenizer = chat_tokenizer(template)
    facts = [FACTS[0], Fact("Rome", "a</think>{} is in", "Spain", id="9")]
    (problem,) = changed_turns(tokenizer, chat_frame(tokenizer), facts, {})
    assert "fact 9" in problem and "does not show" in problem


def test_what_a_template_is_rendered_with_is_a_part_of_it():
    template = (
        "{% for m in messages %}<|start|>{{ m.content }}{% if not enable_thinking %}<|mid|>{% endif %}{% endfor %}"
    )
    tokenizer = chat_tokenizer(template)
    plain, thinking = chat_frame(tokenizer), chat_frame(tokenizer, {"enable_thinking": True})
    assert (plain.after, thinking.after) == ("<|mid|>", "") and plain.template != thinking.template
