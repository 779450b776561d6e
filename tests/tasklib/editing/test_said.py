"""What is taken from a freely generated answer, and whether an object is in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_edit.tasklib.editing.probing import said


@pytest.mark.parametrize(
    ("text", "objects", "answer"),
    [
        (" Zulu. He also", [], "Zulu"),
        ("\n\nZulu, of course\nQuestion: and", [], "Zulu, of course"),
        ("Washington, D.C. is", ["Washington, D.C."], "Washington, D.C"),
        ("It is St. Louis. And", ["St. Louis"], "It is St. Louis"),
        ("It is St. Louis. And", ["Rome"], "It is St"),
        ("about 3.5 million. So", [], "about 3.5 million"),
        ("法语。他", [], "法语"),
        ("", ["a"], ""),
        (" \n ", ["a"], ""),
        (".", [], ""),
    ],
)
def test_the_answer_is_the_first_sentence_or_line(text, objects, answer):
    assert said.answer(text, objects) == answer


def test_generation_does_not_stop_inside_an_object():
    assert said.stops_for(said.STOPS, ["Rome", "1998"]) == ["。"]  # "1998.5" would be read as right
    assert said.stops_for(said.STOPS, ["Rome", "Oslo"]) == [".", "。"]
    assert said.stops_for(said.STOPS, ["Rome", "St. Louis"]) == ["。"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Queen's, an End!", "queens end"),
        ("ＮＥＷ　ＹＯＲＫ，１９９８", "new york1998"),
        ("《红楼梦》。", "红楼梦"),
        ("艾伦·图灵", "艾伦图灵"),
        ("\u200fالفرنسية\u200f،", "الفرنسية"),
        ("Cafe\u0301 — Łódź", "café łódź"),
        ("$5 + b", "5 b"),
        ("Serie A", "serie a"),
        ("A Serie A of the", "serie of the"),
        ("about 3.5, or 1,998.", "about 3.5 or 1998"),
        ("---", ""),
    ],
)
def test_normal_form(text, normal):
    assert said.normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "objects", "held"),
    [
        ("It is the Zulu language", ["zulu"], True),
        ("a Roman", ["Oman"], False),
        ("Romans", ["Roman"], False),
        ("Oman, Roman Oman", ["Oman"], True),
        ("it is Oman's", ["Oman"], True),
        ("Oman\u2019s capital", ["Oman"], True),
        ("Romans' Oman", ["Roman"], False),
        ("McDonald's", ["McDonald's"], True),
        ("the The.", ["The The"], True),
        ("A", ["A"], True),
        ("a man", ["A"], False),
        ("the", ["A"], False),
        ("他说法语和日语", ["法语"], True),
        ("เขาพูดภาษาฝรั่งเศสได้", ["ฝรั่งเศส"], True),
        ("اللغة الفرنسية", ["الفرنسية"], True),
        ("프랑스의 수도는 파리입니다", ["파리"], True),
        ("그것은 IBM이다", ["IBM"], True),
        ("대파리", ["파리"], False),
        ("한국", ["한"], False),
        ("French", ["French language", "French"], True),
        ("anything", ["---", ""], False),
        ("It is +/ here", ["+/"], True),
        ("plus +", ["+/"], False),
        # marks between words part them
        ("Paris—the capital", ["Paris"], True),
        ("Rome/London", ["London"], True),
        ("a French-speaking man", ["French"], True),
        ("Jay-Z", ["Jay Z"], True),
        ("the Parisian", ["Paris"], False),
        ("3.14", ["14"], False),
        ("35", ["3.5"], False),
        ("$3.5 million", ["3.5 million"], True),
        ("on 1,998 days", ["998"], False),
        ("12:30", ["30"], False),
        # the last word of an object is no article
        ("He plays in Serie A in Italy", ["Serie A"], True),
        ("Serie B", ["Serie A"], False),
        ("the vitamin B", ["vitamin A"], False),
        ("the Lord of Rings", ["The Lord of the Rings"], True),
        ("a lack of vitamin A, say", ["vitamin A"], True),
        ("", ["a b"], False),
        # Wikidata's aliases of countries are codes, which are common words in lower case.
        (
            "It is in Europe, as far as I can tell, and so are they",
            ["Italy", "IT", "IN", "IS", "CAN", "AND", "be"],
            False,
        ),
        ("He lives in the US", ["United States", "US"], True),
        ("The U.S. government", ["US"], True),
        ("tell us", ["US"], False),
        ("the us", ["US"], True),
        ("us", ["US"], True),
        ("be", ["be"], True),
        ("It is large", ["It"], False),
        ("King's novel It", ["It"], True),
        ("President Xi's car", ["Xi"], True),
        ("Xi Jinping", ["Xi"], True),
        ("Ur, a city of Sumer", ["Ur"], True),
        ("I am here", ["I"], False),
        ("as per Odd", ["Per Odd"], True),
        ("Ann", ["ann"], True),
        ("он и она", ["И"], False),
        ("在中国", ["中"], True),
    ],
)
def test_containment(text, objects, held):
    assert said.contains(text, objects) is held


def test_an_object_of_articles_is_said_too():
    """SQuAD's normal form leaves nothing of it."""
    assert said.normalise("The The") == "" and said.exact("the the", ["The The"]) and not said.exact("", ["A", "!"])
    assert said.is_said("A") and not said.is_said("!?")


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("C++", "C#"),
        ("Serie A", "Serie B"),
        ("1.5", "15"),
        ("The Who", "Who"),
        ("+5", "-5"),
        ("Hepatitis A", "Hepatitis"),
    ],
)
def test_two_objects_are_never_taken_for_each_other(new, old):
    """Whatever the normal form leaves of them; nor is one taken for a part of the other."""
    for one, other in ((new, old), (old, new)):
        assert said.exact(one, [one], [other]) and said.contains(f"It is {one}", [one], [other])
        assert not said.exact(other, [one], [other])
    assert not said.contains(f"It is {old}", [new], [old])


@pytest.mark.parametrize(
    ("text", "asked", "objects", "held"),
    [
        ("The University of Paris is in Berlin", ["University of Paris"], ["Paris"], False),
        ("the university of  paris is in Paris", ["University of Paris"], ["Paris"], True),
        ("Paris", ["University of Paris"], ["Paris"], True),
        ("Dazzling Girl", ["Dazzling Girl"], ["Dazzling Girl"], True),  # it is the answer
        ("Nils, of Rome", ["Nils"], ["Rome"], True),
        ("Rome or Oslo? Rome or Oslo?", ["Rome or Oslo?", "Nils"], ["Rome"], False),
        ("It is Rome", ["Rome or Oslo?", "Nils"], ["Rome"], True),
        ("(x", ["(x y", "(x"], ["y"], False),
    ],
)
def test_what_an_answer_repeats_of_the_question_is_no_answer(text, asked, objects, held):
    assert said.contains(said.without_echo(text, asked, objects), objects) is held


@pytest.mark.parametrize(
    ("text", "others", "objects", "held"),
    [
        ("New York City", ["New York City"], ["New York"], False),
        ("in New York, not in new york  city", ["New York City"], ["New York"], True),
        ("It is The Who", ["The Who"], ["Who"], False),
        ("It is Who", ["The Who"], ["Who"], True),
        ("New York City", ["New York"], ["New York City"], True),
        ("Rome", ["rome"], ["Rome"], True),  # the same: nothing to tell apart
    ],
)
def test_an_object_is_not_said_with_another_in_which_it_stands(text, others, objects, held):
    assert said.contains(said.without_others(text, others, objects), objects, others) is held


@settings(max_examples=300)
@given(st.text(max_size=30), st.text(max_size=30))
def test_properties_of_answers(text, other):
    assert said.normalise(said.normalise(text)) == said.normalise(text)
    first = said.answer(text, [other])
    assert "\n" not in first and first == first.strip() and first in text
    assert said.exact(text, [text]) == said.contains(text, [text]) >= said.is_said(text)
    assert not said.contains(text, [""]) and not said.exact("", [text])
    if said.exact(text, [other]):
        assert said.contains(text, [other])
