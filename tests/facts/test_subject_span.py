"""Where a subject stands, whichever Unicode form it and the prompt are in."""

from __future__ import annotations

import unicodedata

import pytest

from lm_eval_edit import Fact
from lm_eval_edit.facts.subject_span import one_form, subject_span

NAMES = ["José Prà", "Ấn Độ", "한국", "Ångström", "भारत", "ሀገር", "がぎ", "Łódź", "Āḥmad", "🙂 x"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of_prompt", ["NFC", "NFD"])
@pytest.mark.parametrize("of_subject", ["NFC", "NFD"])
def test_every_form_of_a_name_is_found_in_every_form_of_a_prompt(name, of_prompt, of_subject):
    before = unicodedata.normalize(of_prompt, "È così: ")
    inside, after = (unicodedata.normalize(of_prompt, text) for text in (name, " è"))
    span = subject_span(before + inside + after, unicodedata.normalize(of_subject, name))
    assert span == (len(before), len(before) + len(inside))


def test_marks_in_another_order_are_the_same_text():
    one, other = "a\u0323\u0307", "a\u0307\u0323"
    assert unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert subject_span(f"x {one} y", other) == (2, 5)
    assert subject_span("x \u1ea1\u0307 y", other) == (2, 4)  # one of the marks composed


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Jose\u0301 lives in", "Jose"),  # José is another name, in whichever form
        ("Jos\u00e9 lives in", "Jose"),
        ("Pre\u0301val", "Pre"),
        ("\uac01 x", "\uac00"),  # a Hangul syllable is not the one it begins with
        ("\u1100\u1161\u11a8 x", "\u1100\u1161"),
        ("\uff2f\uff53\uff4c\uff4f is", "Oslo"),  # full-width letters are other characters
        ("x\u00b2 is", "x2"),
        ("oslo is", "Oslo"),
        ("", "Oslo"),
    ],
)
def test_what_is_another_text_is_not_found(prompt, subject):
    assert subject_span(prompt, subject) is None


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u2009", "  ", "\n", "\u3000"])
def test_white_space_of_any_kind_is_white_space(space):
    assert subject_span(f"In New{space}York it", "New York") == (3, 10 + len(space))
    assert subject_span("In New York it", f"New{space}York") == (3, 11)


@pytest.mark.parametrize(("subject", "span"), [("Rome ", (12, 17)), (" Rome\n", (12, 16)), ("Rome\u00a0", (12, 16))])
def test_white_space_around_the_subject_is_kept_only_where_the_prompt_has_it(subject, span):
    assert subject_span("The city of Rome is", subject) == span


@pytest.mark.parametrize(
    ("prompt", "subject", "start"),
    [
        ("Annual report of Ann today", "Ann", 17),  # as a word, not inside another
        ("Ann is an annual Ann", "Ann", 0),
        ("Annual", "Ann", 0),
        ("Re\u0301nee of Re\u0301ne", "Réne", 10),
        ("Jose\u0301 or Jose", "Jose", 9),
        ("Os\u00a0lo and Os lo", "Os lo", 10),  # the very same characters win
        ("东京的首都", "东京", 0),
        ("रामी और राम", "राम", 8),  # a vowel's sign goes on with the word
        ("👍🏽 or 👍", "👍", 6),
        ("👨\u200d👩\u200d👧 or 👨", "👨", 9),
    ],
)
def test_which_occurrence(prompt, subject, start):
    assert subject_span(prompt, subject)[0] == start


def test_another_case_is_found_only_when_asked_for():
    assert subject_span("In OSLO it", "Oslo") is None
    assert subject_span("In OSLO it", "Oslo", any_case=True) == (3, 7)
    assert subject_span("Die STRASSE ist", "Straße", any_case=True) == (4, 11)
    assert subject_span("E\u0301COLE x", "école", any_case=True) == (0, 6)


def test_a_fact_takes_its_subject_out_of_the_prompts_own_characters():
    fact = Fact("Jos\u00e9", "Of Jose\u0301 it", "x")
    assert fact.problem() is None and fact.template == "Of {} it" and fact.text == "Of Jose\u0301 it"
    with pytest.raises(ValueError, match="the subject 'Ann' is not in the prompt 'Of Tom'"):
        Fact("Ann", "Of Tom", "x").template  # noqa: B018


def test_one_form():
    assert one_form(" Jose\u0301 \u00a0 Pra\n") == "José Pra" != one_form("Jose Pra")
