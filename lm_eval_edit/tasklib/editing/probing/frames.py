"""The texts that `edithurt_probing` puts around a fact's prompt.

The words around are English, whatever the language of the fact. What decides between frames is the shape of the prompt:
whether it asks (it ends with a question mark of any script, behind which an "Answer:" may wait) or is continued by its
object, and whether the last word before the object is a form of "to be", which is negated by a word behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import regex

from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.separators import continuing

TRUE, FALSE = "True", "False"
NEW, OLD = "new", "old"  # a statement with o*, which an edited model holds for true; with o, for false
WORDS, LETTERS = "words", "letters"
THAT, NOT = "that", "not"

_QUESTION = regex.compile(
    r"^\s* (?P<question> .* [?？؟⁇⁈՞፧;︖﹖] ) (?: \s* (?: a | answer ) \s* [:：] )? \s*$",
    regex.VERBOSE | regex.DOTALL | regex.IGNORECASE,
)
_LABEL = regex.compile(r"^(?:q|question)\s*[:：]\s*", regex.IGNORECASE)
_IS = regex.compile(r"\b(?:is|are|was|were)\s*$")
_ENDED = regex.compile(r"[.!?…。！？．؟۔।॥]['\"”’»)\]」』）]*$")
_WITHOUT_SPACES = regex.compile(r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}]['\"”’»)\]」』）]*$")
_OF_INDIA = regex.compile(r"[\p{Script=Devanagari}]['\"”’»)\]]*$")


def asks(prompt: str) -> bool:
    """Whether a prompt is a question, which its object answers; else the object continues it."""
    return bool(_QUESTION.match(prompt))


def _question(prompt: str) -> str | None:
    """The question that a prompt asks, without the labels of "Q: ...? A:"; None where its object continues it."""
    found = _QUESTION.match(prompt)
    return _LABEL.sub("", found["question"]) if found else None


# ------------------------------------------------------------------------------------------------------------ negation


def negations(fact: Fact) -> Iterator[tuple[str, str]]:
    """(which frame, the prompt negated) of a fact, each to be continued by an object."""
    text = fact.text
    question = _question(text)
    if question is not None:
        answer = f'answer to the question "{question}" is'
        yield THAT, f"It is not true that the {answer}"
        yield NOT, f"The {answer} not"
        return
    yield THAT, f"It is not true that {text}"
    if _IS.search(text):
        yield NOT, f"{text.rstrip()} not"


def negated(fact: Fact, prompt: str, text: str) -> str:
    """An object as it continues a negated prompt.

    What a fact's record states of its separator is about its own prompt: it holds where that still ends the text.
    """
    return fact.continuing(prompt, text) if prompt.endswith(fact.text) else continuing(prompt, text)


# ---------------------------------------------------------------------------------------------------------- fact check


@dataclass(frozen=True)
class Check:
    """One question whether a statement is true.

    Attributes:
        about: Which object the statement has: `NEW` or `OLD`.
        form: Whether it is answered in `WORDS` or by `LETTERS`.
        order: Which option is named first: `TRUE` or `FALSE`.
        prompt: The question.
        right: The option that a model with the edit chooses, without what stands before it.
        wrong: The other one.
    """

    about: str
    form: str
    order: str
    prompt: str
    right: str
    wrong: str


def checks(fact: Fact, true: str) -> Iterator[Check]:
    """The eight questions about a fact: two statements, two ways to answer, two orders of the options.

    Args:
        true: The true object o.
    """
    for about, text in ((NEW, fact.target_new), (OLD, true)):
        claim, noun = _claim(fact, text)
        for form in (WORDS, LETTERS):
            for first, second in ((TRUE, FALSE), (FALSE, TRUE)):
                options = {TRUE: TRUE, FALSE: FALSE}
                if form == WORDS:
                    ask = f"Is this {noun} {first} or {second}?"
                else:
                    ask = f"Is this {noun} true?\nA. {first}\nB. {second}"
                    options = {first: "A", second: "B"}
                right = TRUE if about == NEW else FALSE
                wrong = FALSE if about == NEW else TRUE
                yield Check(about, form, first, f"{claim}\n{ask}\nAnswer:", options[right], options[wrong])


def _claim(fact: Fact, text: str) -> tuple[str, str]:
    """A fact with an object as something to be true or false, and what it is called."""
    prompt = fact.text
    question = _question(prompt)
    if question is not None:
        return f"Question: {question}\nProposed answer: {text.strip()}", "answer"
    return f"Statement: {sentence((prompt + fact.continuing(prompt, text)).strip())}", "statement"


def sentence(text: str) -> str:
    """A text with the mark at its end that its script ends a sentence with; none where one stands there already."""
    if _ENDED.search(text):
        return text
    return text + ("。" if _WITHOUT_SPACES.search(text) else "।" if _OF_INDIA.search(text) else ".")
