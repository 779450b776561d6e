"""What stands between a prompt and the object that continues it: one space, or nothing.

Decided by what stands on both sides, as a writer would:

    nothing   after white space; after an opening bracket or quotation mark; between words of a script that writes
              none between them (Chinese, Japanese, Thai, Lao, Khmer, Burmese, ...); around full-width punctuation;
              after a mark that leans on what follows ("$", "#", "@", a slash) or that joins two words ("Franco-");
              before a mark that leans on what stands before it (", who", ")", "'s", "%", "-based")
    a space   everywhere else, Korean and Arabic included

White space that the object itself begins with is its own and stays, but for spaces after white space or an opening
mark, where none can stand; so data with a space before every object read as those without.

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

# What leans on the word behind it. A currency's sign behind a number, and "C#", lean on what stands before.
_LEANS_ON_NEXT = regex.compile(
    r"""[/\\] $                          # a path, an address, either of two words
      | (?<! \d\s? ) \p{Sc} $
      | (?<! [\p{L}\p{N}] ) [#~] $
      | @ $
      | (?<= \S ) (?: \p{Pd}+ | [|=&^] ) $   # joins two words; apart from the first it stands apart from the other
      | (?<= [\p{L}\p{N}] ) _ $
      | < \p{L}+ > $ | <\| \w+ \|> $       # an opening tag
      | (?<! \p{L} ) (?: [cdjlmnst] | o | (?: jus|lors|puis|quoi )? qu
                      | (?: de|da|ne|su|que ) ll ) ['’] $  # elided: l'Italia, O'Brien
    """,
    regex.V1 | regex.VERBOSE | regex.IGNORECASE,
)
# Emphasis of Markdown opens where the same mark is not open already.
_EMPHASIS = regex.compile(r"(?<! \S ) (\*\*|__?) $", regex.V1 | regex.VERBOSE)
# What leans on the word before it: what closes or ends a clause (no ".NET", "!Kung"), a word's ending, a vowel's mark.
_LEANS_ON_LAST = regex.compile(
    r"""\p{Pe} | \p{M} | (?: [.,;:!?،؛؟।] | … )+ (?: \s | ["'”’»)\]] | $ )
      | ['’] (?: s|re|ve|ll|d|m|t ) \b | \p{Pd} \p{L}{2}
    """,
    regex.V1 | regex.VERBOSE | regex.IGNORECASE,
)
_SHARE = regex.compile(r"[%‰°]")


def separator(before: str, after: str) -> str:
    """What stands between a text and the one that continues it: `" "` or `""`.

    Args:
        before: A prompt in clear, all of what stands before the object.
        after: The object, without white space before it.
    """
    if not before or not after or before[-1].isspace():
        return ""
    alone = _opens(before) or _leans(before, after) or _writes_no_space(before, after)
    return "" if alone else " "


def continuing(prompt: str, text: str, stated: str | None = None) -> str:
    """A text as it continues a prompt, with what stands between.

    Args:
        stated: The separator that a fact's record states, which wins over the text's own white space too.
    """
    bare = text.lstrip()
    own = text[: len(text) - len(bare)]
    if stated is not None:
        return stated + bare
    if own.strip(" "):  # a line break, a tab, a non-breaking space: nobody's slip
        return text
    if own and prompt and not prompt[-1].isspace() and not _opens(prompt):
        return " " + bare
    return separator(prompt, bare) + bare


def _leans(before: str, after: str) -> bool:
    """Whether a mark at the seam leans on the other side."""
    emphasis = _EMPHASIS.search(before)
    if emphasis and before.count(emphasis[1]) % 2 == 1:
        return True
    if _LEANS_ON_NEXT.search(before) or (_SHARE.match(after) and before[-1].isdigit()):
        return True
    return bool(_LEANS_ON_LAST.match(after)) and bool(regex.match(r"[^\p{Pd}]", before[-1]))


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
