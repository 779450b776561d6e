"""Where a subject stands in a prompt, whichever Unicode form the two are written in.

Two texts that a reader sees as one are one here: letters with their marks composed or apart (NFC, NFD and anything
between), and white space of any kind and length (a non-breaking space is what a copied web page has for a space).
Nothing else is equalled: compatibility forms (full-width letters, ligatures, superscripts) look different and are other
tokens, and upper and lower case can be two names. The span counts the prompt's own characters, so that they, not a
normalised copy, are what a model reads.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import regex


def one_form(text: str) -> str:
    """`text` in the one form in which texts are compared: NFC, each run of white space a single space, none around."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def subject_span(prompt: str, subject: str, *, any_case: bool = False) -> tuple[int, int] | None:
    """Where the subject stands in a prompt in clear: its first occurrence as a word, else its first at all.

    An occurrence in the very same characters wins over one in another Unicode form or without the white space around
    the subject. One that ends inside a character ("Jose" in "Jose" + a combining accent, which is "José") is none.

    Args:
        prompt: The prompt, with the subject in clear.
        subject: The subject, not empty.
        any_case: Take an occurrence that differs in upper and lower case, too (to tell a reader about it).

    Returns:
        (start, end) in characters of the prompt, or None.
    """
    for found in ([] if any_case else _exact(prompt, subject)), _folded(prompt, subject, any_case):
        first = None
        for span in found:
            if is_word(prompt, *span):
                return span
            first = first or span
        if first:
            return first
    return None


def _exact(prompt: str, subject: str) -> Iterator[tuple[int, int]]:
    start = prompt.find(subject)
    while start >= 0:
        if _whole(prompt, start) and _whole(prompt, start + len(subject)):
            yield start, start + len(subject)
        start = prompt.find(subject, start + 1)


def _folded(prompt: str, subject: str, any_case: bool) -> Iterator[tuple[int, int]]:
    units, wanted = _units(prompt, any_case), "".join(unit for unit, _, _ in _units(subject.strip(), any_case))
    text = "".join(unit for unit, _, _ in units)
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        inside, outside = units[start : start + len(wanted)], units[:start] + units[start + len(wanted) :]
        span = min(first for _, first, _ in inside), max(last for _, _, last in inside)
        # A character of the prompt is in the span as a whole or not at all.
        if not any(span[0] <= first < span[1] for _, first, _ in outside) and all(_whole(prompt, at) for at in span):
            yield span
        start = text.find(wanted, start + 1)


def _units(text: str, any_case: bool) -> list[tuple[str, int, int]]:
    """The text decomposed, marks in canonical order (NFD), with where each unit comes from: (unit, start, end)."""
    units: list[tuple[str, int, int]] = []
    for match in re.finditer(r"\s+|\S", text):
        start, end = match.span()
        whole = " " if match[0].isspace() else unicodedata.normalize("NFD", match[0])
        if any_case:
            whole = unicodedata.normalize("NFD", whole.casefold())
        units += [(unit, start, end) for unit in whole]
    start = 0
    while start < len(units):
        end = start + 1
        while end < len(units) and unicodedata.combining(units[end][0]):
            end += 1
        marks = start if unicodedata.combining(units[start][0]) else start + 1
        units[marks:end] = sorted(units[marks:end], key=lambda unit: unicodedata.combining(unit[0]))
        start = end
    return units


def _whole(prompt: str, at: int) -> bool:
    """Whether the prompt can be cut here without cutting a character, composed of several code points, in two."""
    if at in (0, len(prompt)) or prompt[at].isascii():
        return True
    before, after = prompt[:at], prompt[at:]
    return unicodedata.normalize("NFC", before) + unicodedata.normalize("NFC", after) == unicodedata.normalize(
        "NFC", prompt
    )


# A letter's marks (the vowels of Devanagari and Thai among them), what joins emoji, and their skin belong to it.
_IN_WORD = regex.compile(r"[\w\p{M}\u200d\U0001f3fb-\U0001f3ff]")
_JOINED = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{lb=SA}]")


def is_word(prompt: str, start: int, end: int) -> bool:
    """Whether a part of a prompt begins and ends where words do."""
    return not any(_edges(prompt, start, end))


def may_be_word(prompt: str, start: int, end: int) -> bool:
    """Whether it does, or may in a script without spaces: several characters, one of its ends a word's for sure."""
    edges = _edges(prompt, start, end)
    return not any(edges) or (end - start > 1 and not all(edges) and bool(_JOINED.match(prompt[start])))


def _edges(prompt: str, start: int, end: int) -> tuple[bool, bool]:
    """Whether a word goes on before a part of a prompt, and behind it."""
    before, after = prompt[start - 1 : start] if start else "", prompt[end : end + 1]
    return bool(_IN_WORD.match(before)), bool(_IN_WORD.match(after))
