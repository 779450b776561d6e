"""What stands between a prompt and the object that continues it: one space, or nothing.

Decided by what stands on both sides, as a writer would:

    nothing   after white space; after an opening bracket or quotation mark; between words of a script that writes
              none between them (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...); around full-width punctuation
    a space   everywhere else, Korean and Arabic included

Unicode's properties tell the scripts: East_Asian_Width, Script and Line_Break (SA: "complex context", the scripts whose
words are found with a dictionary because no space parts them).
"""

from __future__ import annotations

import unicodedata

import regex

# Letters and digits of scripts that put no space beside them, not even beside a foreign word.
_WIDE = regex.compile(r"[\p{L}\p{M}\p{N}&&[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}]]", regex.V1)
# Full-width and ideographic punctuation holds its own white space.
_WIDE_MARK = regex.compile(r"[\p{P}&&[\p{ea=W}\p{ea=F}]]", regex.V1)
# Scripts whose words stand together, but apart from foreign ones.
_JOINED = regex.compile(r"[\p{lb=SA}\p{Script=Tibetan}\p{Script=Balinese}\p{Script=Javanese}]", regex.V1)
_LETTER = regex.compile(r"[\p{L}\p{M}]")

_GERMAN = {"“": "„", "‘": "‚"}  # these close where the other one is open, and open elsewhere
_STRAIGHT = "\"'`＂＇"
_INVERTED = "¿¡"


def separator(before: str, after: str) -> str:
    """What stands between a text and the one that continues it: `" "` or `""`.

    Args:
        before: A prompt in clear, all of what stands before the object.
        after: The object, without white space before it.
    """
    if not before or not after or before[-1].isspace():
        return ""
    if _opens(before) or _writes_no_space(before, after):
        return ""
    return " "


def continuing(prompt: str, text: str, stated: str | None = None) -> str:
    """A text as it continues a prompt: its own white space before it taken off, and the separator put there.

    Args:
        stated: The separator that a fact's record states, which wins.
    """
    text = text.lstrip()
    return (separator(prompt, text) if stated is None else stated) + text


def _opens(text: str) -> bool:
    """Whether the text ends with an opening bracket or quotation mark."""
    last, rest = text[-1], text[:-1]
    category = unicodedata.category(last)
    if category == "Ps" or last in _INVERTED:
        return True
    if category == "Pi":
        return not (last in _GERMAN and rest.count(_GERMAN[last]) > rest.count(last))
    if category == "Pf" or last in _STRAIGHT:
        if rest and not rest[-1].isspace() and unicodedata.category(rest[-1]) not in ("Ps", "Pi", "Pd"):
            return False  # close behind a word: it closes, or is an apostrophe
        return category == "Pf" or _quotes(rest, last) % 2 == 0
    return False


def _quotes(text: str, mark: str) -> int:
    """How many of a straight mark are quotation marks: one between two letters is an apostrophe."""
    return len(regex.findall(rf"(?<!\p{{L}}){regex.escape(mark)}|{regex.escape(mark)}(?!\p{{L}})", text))


def _writes_no_space(before: str, after: str) -> bool:
    last, first = before[-1], after[0]
    if _WIDE_MARK.match(last) or _WIDE_MARK.match(first) or _WIDE.match(last):
        return True
    if _JOINED.match(last):
        return bool(_JOINED.match(first))
    if _LETTER.match(last):
        return False
    # Digits and narrow punctuation belong to the word before them.
    letters = _LETTER.findall(before)
    if not letters or not (_WIDE.match(first) or _JOINED.match(first)):
        return False
    return bool(_WIDE.match(letters[-1]))
