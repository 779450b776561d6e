"""What is taken from a freely generated answer, and whether an object is in it.

The answer is what is said up to the end of the first sentence or line, as the WILD protocol has it. It is compared in
SQuAD's normal form, with the punctuation and widths of all scripts rather than ASCII's alone.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable, Sequence

import regex

#: What ends an answer beside the end of the line and the model's own end of text.
STOPS = (".", "。")

_ARTICLES = frozenset(("a", "an", "the"))
# A full stop between digits is a number's own: "3.5" is no 35.
_NOT_SAID = regex.compile(
    rf"(?! (?<=\d) \. (?=\d) ) [\p{{P}}\p{{Cf}}{regex.escape(string.punctuation, special_only=False)}]", regex.VERBOSE
)
# Marks that stand between words ("Paris—the capital", "London/Paris", "French-speaking"), none inside a name or number.
_BETWEEN = regex.compile(r"(?! (?<=\d) [.,:] (?=\d) ) [\p{P}|<>=~--['’＇.]]", regex.V1 | regex.VERBOSE)
_POSSESSIVE = regex.compile(r"(?<=\w)['’＇]s\b", regex.IGNORECASE)
_AT_ENDS = " .,;:!?…\"'“”‘’«»()[]{}。，、；：！？「」『』؟،"
_IN_WORD = regex.compile(r"[\p{L}\p{M}\p{N}.]")  # the normal form has full stops inside numbers alone
# Scripts whose words stand together: where one ends is not written.
_JOINED = regex.compile(
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{lb=SA}\p{Script=Tibetan}]", regex.V1
)

_HANGUL = regex.compile(r"\p{Script=Hangul}")
_LETTERS = 2  # of a name that a word of a language may be
_WORDS_IN_CAPITALS = ("A", "I")
_SENTENCE = regex.compile(r"\W*\w+\s+\p{Ll}")

Form = Callable[[str], str]


def normalise(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no English articles, single spaces.

    Before that, characters of full width become plain ones; marks that cannot be seen (of writing direction, say) go.
    An article is followed by something: the last word of "Serie A" is none. A number keeps its decimal point.
    """
    words = _words(text).split()
    if all(word in _ARTICLES for word in words):
        return ""
    return " ".join([word for word in words[:-1] if word not in _ARTICLES] + words[-1:])


def _words(text: str) -> str:
    """The normal form with its articles."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return " ".join(unicodedata.normalize("NFC", _NOT_SAID.sub("", text)).split())


def _with_marks(text: str) -> str:
    """A text in lower case with all marks but those at its ends: what tells "C++" from "C#"."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).strip(_AT_ENDS)


def stops_for(stops: Sequence[str], objects: Sequence[str]) -> list[str]:
    """The marks at which generation may stop for a document.

    None that stands in an object ("Washington, D.C."), nor a full stop behind one that is a number: it may go on.
    """
    numbers = any(each.rstrip()[-1:].isdigit() for each in objects)
    return [stop for stop in stops if not any(stop in each for each in objects) and not (numbers and stop == ".")]


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


def exact(said: str, objects: Sequence[str], others: Sequence[str] = ()) -> bool:
    """Whether an answer is one of the objects, both normalised.

    Args:
        others: Objects that the answer is to be told from. Where one of them has the same normal form ("C#" beside
            "C++"), articles and then marks are kept. So they are where nothing else is left of an object ("The The").
    """
    return any((form := _form_for(each, others))(said) == form(each) != "" for each in objects)


def contains(said: str, objects: Sequence[str], others: Sequence[str] = ()) -> bool:
    """Whether an answer holds one of the objects as words of its own, both normalised ("Roman" holds no "Oman").

    The normal form makes one word of "Kelm's", and of "Rome-based"; the object is in them all the same. An object of
    nothing but articles is in an answer that is it, and in no longer one, where they may be articles. What could be a
    common word but for its capitals ("US", India's "IN", "Xi") has to be said with them.

    Args:
        others: As for `exact`.
    """
    return any(_holds_object(said, each, _form_for(each, others)) for each in objects) or exact(said, objects, others)


def _form_for(each: str, others: Sequence[str]) -> Form:
    """The first form that leaves something of an object and tells it from the others; else the first that leaves it."""
    left = [form for form in (normalise, _words, _with_marks) if form(each)]
    telling = [form for form in left if all(form(other) != form(each) for other in others)]
    return (telling or left or [normalise])[0]


def _holds_object(said: str, each: str, form: Form) -> bool:
    if form is _with_marks:
        return _holds(_with_marks(said), _with_marks(each), _ended)
    if not normalise(each):
        return False
    texts = [said, _POSSESSIVE.sub("", said)]
    pairs = [(text, each) for text in texts] + [(_apart(text), _apart(each)) for text in texts]
    if _is_short(each):
        return any(_holds_short(text, _as_written(name)) for text, name in pairs)
    # An article in the answer may be a part of the object: it is looked for with and without them.
    return any(_holds(read(text), form(words), _parted) for text, words in pairs for read in (form, _words))


def _apart(text: str) -> str:
    return _BETWEEN.sub(" ", text)


def _as_written(text: str) -> str:
    """The normal form with its capitals and articles."""
    return " ".join(_NOT_SAID.sub("", unicodedata.normalize("NFKC", text)).split())


def _is_short(text: str) -> bool:
    """Whether a name is one or two letters, or an abbreviation of three: in lower case such are words of a language
    ("in", "it", "and", "can"), and aliases of countries among them."""
    word = _as_written(text)
    has_case = word.isalpha() and word.lower() != word.upper()
    return has_case and (len(word) <= _LETTERS or (len(word) == _LETTERS + 1 and word.isupper()))


def _holds_short(text: str, name: str) -> bool:
    """Whether a short name is said as it is written; the capital that begins a sentence is no name's own."""
    if name.islower() or name in _WORDS_IN_CAPITALS:
        return False  # it may be the whole answer only
    return _holds(_as_written(text), name, _parted, 1 if _SENTENCE.match(text) and not name.isupper() else 0)


def _holds(text: str, words: str, ended: Callable[[str, str], bool], start: int = 0) -> bool:
    place = text.find(words, start) if words else -1
    while place >= 0:
        end = place + len(words)
        behind = text[end : end + 1]
        if ended(text[place - 1 : place], words[0]) and (ended(words[-1], behind) or _goes_on_in_korean(words, behind)):
            return True
        place = text.find(words, place + 1)
    return False


def _goes_on_in_korean(words: str, behind: str) -> bool:
    """Whether a particle may follow: Korean writes it, or a form of "to be", without a space behind a name."""
    return len(words) > 1 and bool(_HANGUL.match(behind))


def _parted(left: str, right: str) -> bool:
    """Whether a word may end between two characters, either of which may be missing."""
    if not left or not right or not _IN_WORD.match(left) or not _IN_WORD.match(right):
        return True
    return not unicodedata.combining(right) and bool(_JOINED.match(left) or _JOINED.match(right))


def _ended(left: str, right: str) -> bool:
    """The same where marks are a part of words."""
    marks = not left or not right or left in _AT_ENDS or right in _AT_ENDS
    return marks or bool(_JOINED.match(left) or _JOINED.match(right))


def without_echo(said: str, asked: Sequence[str], objects: Sequence[str]) -> str:
    """An answer without what it repeats of the question where that holds an object: such words answer nothing.

    Args:
        asked: The prompt and the subject's name. One that is an object itself stays: then it is the answer.
        objects: What the answer is searched for.
    """
    for each in asked:
        if any(contains(each, [one]) and not exact(each, [one]) for one in objects):
            said = _without(said, each)
    return said


def without_others(said: str, others: Sequence[str], objects: Sequence[str]) -> str:
    """An answer without other objects in which one of these stands: "New York City" is no "New York"."""
    for each in others:
        if any(contains(each, [one]) and not exact(each, [one], [each]) for one in objects):
            said = _without(said, each)
    return said


def _without(said: str, text: str) -> str:
    return str(regex.sub(r"\s+".join(map(regex.escape, text.split())), " … ", said, flags=regex.IGNORECASE))
