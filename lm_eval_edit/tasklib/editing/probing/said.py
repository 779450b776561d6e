"""What is taken from a freely generated answer, and whether an object is in it.

The answer is what is said up to the end of the first sentence or line, as the WILD protocol has it. It is compared in
SQuAD's normal form, with the punctuation and widths of all scripts rather than ASCII's alone.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

import regex

#: What ends an answer beside the end of the line and the model's own end of text.
STOPS = (".", "。")

_ARTICLES = regex.compile(r"\b(?:a|an|the)\b")
_NOT_SAID = regex.compile(r"[\p{P}\p{Cf}" + regex.escape(string.punctuation, special_only=False) + "]")
_POSSESSIVE = regex.compile(r"(?<=\w)['’＇]s\b", regex.IGNORECASE)
_IN_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]")
# Scripts whose words stand together: where one ends is not written.
_JOINED = regex.compile(
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{lb=SA}\p{Script=Tibetan}]", regex.V1
)


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no English articles, single spaces.

    Before that, characters of full width become plain ones; marks that cannot be seen (of writing direction, say) go.
    """
    return " ".join(_ARTICLES.sub(" ", _words(text)).split())


def _words(text: str) -> str:
    """The normal form with its articles."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(unicodedata.normalize("NFC", _NOT_SAID.sub("", text)).split())


def stops_for(stops: Sequence[str], objects: Sequence[str]) -> list[str]:
    """The marks at which generation may stop for a document: none that stands in an object ("Washington, D.C.")."""
    return [stop for stop in stops if not any(stop in each for each in objects)]


def answer(text: str, objects: Sequence[str] = ()) -> str:
    """The answer in what a model said: its first sentence or line, without the mark at its end.

    Args:
        objects: Objects that may be said: a full stop inside one ends no sentence, nor does one between digits.
    """
    lines = text.strip().splitlines()
    said = lines[0].strip() if lines else ""
    for place, character in enumerate(said):
        if character in STOPS and not _inside(said, place, objects):
            return said[:place].rstrip()
    return said


def _inside(said: str, place: int, objects: Sequence[str]) -> bool:
    """Whether the full stop at a place is a part of a number, or of an object that is being said."""
    if said[place - 1 : place].isdigit() and said[place + 1 : place + 2].isdigit():
        return True
    here = said[: place + 1].lower()
    for each in objects:
        known = each.strip().lower()
        for end in (number for number, character in enumerate(known) if character in STOPS):
            # A full stop at the object's own end may end the sentence too: nothing is lost by taking it so.
            if (
                end + 1 < len(known)
                and here.endswith(known[: end + 1])
                and said[place + 1 :].lower().startswith(known[end + 1 :])
            ):
                return True
    return False


def is_said(text: str) -> bool:
    """Whether an answer has a word."""
    return bool(_words(text))


def exact(said: str, objects: Sequence[str]) -> bool:
    """Whether an answer is one of the objects, both normalised; an object with no letter or digit matches nothing.

    An object of nothing but articles ("The The", a grade "A") keeps them, and is compared with them.
    """
    forms = [normalise if normalise(each) else _words for each in objects]
    return any(form(said) == form(each) != "" for form, each in zip(forms, objects, strict=True))


def contains(said: str, objects: Sequence[str]) -> bool:
    """Whether an answer holds one of the objects as words of its own, both normalised ("Roman" holds no "Oman").

    The normal form makes one word of "Kelm's"; the object is in it all the same. An object of nothing but articles is
    in an answer that is it, and in no longer one, where they may be articles. What could be a common word but for its
    capitals ("US", India's "IN", "Xi") has to be said with them.
    """
    said_twice = (said, _POSSESSIVE.sub("", said))
    texts, as_written = [normalise(text) for text in said_twice], [_as_written(text) for text in said_twice]
    names = [each for each in objects if not _is_short(each)]
    return (
        exact(said, objects)
        or any(_holds(text, normalise(each)) for each in names for text in texts)
        or any(_holds_short(text, _as_written(each)) for each in objects if _is_short(each) for text in as_written)
    )


def _as_written(text: str) -> str:
    """The normal form with its capitals and articles."""
    return " ".join(_NOT_SAID.sub("", unicodedata.normalize("NFKC", text)).split())


def _is_short(text: str) -> bool:
    """Whether a name is one or two letters, or an abbreviation of three: in lower case such are words of a language
    ("in", "it", "and", "can"), and aliases of countries among them."""
    word = _as_written(text)
    has_case = word.isalpha() and word.lower() != word.upper()
    return has_case and (len(word) <= _LETTERS or (len(word) == _LETTERS + 1 and word.isupper()))


_LETTERS = 2
_WORDS_IN_CAPITALS = ("A", "I")


def _holds_short(text: str, name: str) -> bool:
    """Whether a short name is said as it is written; a capital at an answer's beginning is no name's own."""
    if name.islower() or name in _WORDS_IN_CAPITALS:
        return False  # it may be the whole answer only
    return _holds(text, name, 0 if name.isupper() else 1)


def _holds(text: str, words: str, start: int = 0) -> bool:
    place = text.find(words, start) if words else -1
    while place >= 0:
        end = place + len(words)
        if _parted(text[place - 1 : place], words[0]) and _parted(words[-1], text[end : end + 1]):
            return True
        place = text.find(words, place + 1)
    return False


def _parted(left: str, right: str) -> bool:
    """Whether a word may end between two characters, either of which may be missing."""
    if not left or not right or not _IN_WORD.match(left) or not _IN_WORD.match(right):
        return True
    return not unicodedata.combining(right) and bool(_JOINED.match(left) or _JOINED.match(right))
