"""Output -> number for the seven tasks scored document by document. Named entities are in `ner`.

Every task has three numbers in 0..1. `score`, the headline, is here; `script`, what the released scripts of Gu et al.
(arXiv 2401.04700) count, is in `script`; `valid` says whether the output had the asked form at all, because a
collapsing model loses the form first.
"""

from __future__ import annotations

import re
import string
from decimal import Decimal
from functools import lru_cache

# A thousands comma is part of a number only before a group of three digits ("18, 19" holds two numbers). A minus is a
# sign unless it follows a word or a bracket ("16-3" begins with 16). Digits are ASCII.
_NUMBER = re.compile(
    r"""(?P<before> (?<![\w)\]])[-−] )?
        (?: \$\s? )?
        (?P<after> (?<=[$ ])[-−] )?
        (?P<digits> (?: [0-9]{1,3}(?:,[0-9]{3})+(?![0-9]) | [0-9]+ ) (?: \.[0-9]+ )? | \.[0-9]+ )""",
    re.VERBOSE,
)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LETTER = re.compile(r"(?<![^\W_])[A-D](?![^\W_])")
_YES_NO = re.compile(r"\b(yes|no)\b")


def first_number(text: str) -> Decimal | None:
    """The first number in `text`, commas and `$` ignored; `18.` is 18 and equals `18.00`. None without a number."""
    found = _NUMBER.search(text)
    if found is None:
        return None
    value = Decimal(found["digits"].replace(",", ""))
    return -value if found["before"] or found["after"] else value


def solved(output: str, gold: str) -> bool:
    """GSM8K `score`: the first number of the output equals the gold number."""
    number = first_number(output)
    return number is not None and number == first_number(gold)


def first_word_of(output: str, words: tuple[str, ...]) -> str | None:
    """The one of `words` (lower case) that comes first in the output, case ignored; None if none is in it."""
    text = output.lower()
    places = [(text.index(word), word) for word in words if word in text]
    return min(places)[1] if places else None


def yes_no(output: str) -> str | None:
    """BoolQ: `yes` or `no` if the output is exactly that word, case ignored, else None.

    One leading space is allowed, not asked for: tokenizers of the SentencePiece kind drop the space of the first
    word when only the new tokens are decoded.
    """
    text = output.lower().removeprefix(" ")
    return text if text in ("yes", "no") else None


def has_yes_no(output: str) -> bool:
    """BoolQ `valid`: the word yes or no is in the output."""
    return _YES_NO.search(output.lower()) is not None


def letter(output: str) -> str | None:
    """MuTual: the first capital A-D that is not part of a word (` Among` holds none), else None."""
    found = _LETTER.search(output)
    return found[0] if found else None


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(output: str, answers: list[str]) -> bool:
    """NQ `score`: what is said first equals an answer, both normalised.

    What is said first is the first non-empty line after an optional leading `Answer:`. Answers whose normal form is
    empty (`---`, `A+`: 4 in NQ-open's dev set) match nothing, or silence would be right.
    """
    text = output.strip()
    if text[:7].lower() == "answer:":
        text = text[7:].lstrip()
    said = normalise(text.splitlines()[0]) if text else ""
    return bool(said) and any(said == normalise(answer) for answer in answers)


@lru_cache(maxsize=1)
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk: only where a summary is scored

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


def rouge(prediction: str, reference: str) -> float:
    """Mean of the F measures of ROUGE-1, ROUGE-2 and ROUGE-L (rouge-score, no stemming)."""
    scores = _rouge_scorer().score(reference, prediction)
    return sum(score.fmeasure for score in scores.values()) / len(scores)


def more_than_one_character(output: str) -> bool:
    """SAMSum and CoNLL `valid`: more than one character, the white space around the output not counted."""
    return len(output.strip()) > 1
