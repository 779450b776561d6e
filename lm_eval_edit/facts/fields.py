"""The fields of a record, read one by one: each knows its path, and what is wrong with it joins the record's problems.

What a data file may hold for a text: text; a number, taken as its digits (1998.0 as 1998: a column of whole numbers
with a gap comes out of a table as floats); nothing, as null or as NaN (which is how pandas and `json.dumps` write it).
"""

from __future__ import annotations

import math
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Lists of texts may be nested (KnowEdit's [["a"]]); deeper than this nothing is a list of texts.
DEPTH = 8
_EXACT = 10**16  # below it a whole float is written without an exponent
_BREAKS = "\t\n\r\x85"


class _Short(reprlib.Repr):
    repr_RepeatedKeys = reprlib.Repr.repr_dict  # a class of objects has its own name there


_short = _Short()
_short.maxstring = _short.maxother = 60
_short.maxlong = 40


def shown(value: Any) -> str:
    """A value in a sentence: short, whatever it is."""
    return _short.repr(value)


def named(key: Any) -> str:
    """A key in a sentence: as it is, but escaped where it cannot be printed."""
    return key if isinstance(key, str) and key.isprintable() else repr(key)


class RepeatedKeys(dict[str, Any]):
    """A JSON object in which keys stand twice with different values, named in `repeated`."""

    repeated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Field:
    """A value of a record.

    Args:
        value: As parsed.
        path: Its place in the record, such as `requested_rewrite.target_new.str`; empty for the record itself.
        problems: Where sentences about this record go (as the keys of a dictionary: each once).
    """

    value: Any
    path: str = ""
    problems: dict[str, None] = field(default_factory=dict)

    @property
    def missing(self) -> bool:
        """Whether nothing is there: null or NaN."""
        return self.value is None or (isinstance(self.value, float) and math.isnan(self.value))

    def wrong(self, sentence: str) -> None:
        """Add a problem."""
        self.problems[sentence] = None

    def has(self, key: str) -> bool:
        """Whether a field of that name is in the object, be it null."""
        return isinstance(self.value, Mapping) and key in self.value

    def needs(self, key: str) -> None:
        """A field that this object has to have, empty though it may be: without it, it is a problem."""
        if isinstance(self.value, Mapping) and key not in self.value:
            self.wrong(f"field '{self.path}.{key}' is missing")

    def __getitem__(self, key: str | int) -> Field:
        """A field of this object or an entry of this list; a missing one where it is not there."""
        if isinstance(key, int):
            return replace(self, value=self.value[key], path=f"{self.path}[{key}]")
        path = f"{self.path}.{named(key)}" if self.path else named(key)
        if self.missing:
            return replace(self, value=None, path=path)
        if not isinstance(self.value, Mapping):
            self.wrong(f"{self.path} should be an object with fields; got {shown(self.value)}")
            return replace(self, value=None, path=path)
        if key in getattr(self.value, "repeated", ()):
            self.wrong(f"{path} stands twice with different values; keep one")
        return replace(self, value=self.value.get(key), path=path)

    def entries(self) -> list[Field]:
        """The entries of a list; none where it is missing."""
        if self.missing:
            return []
        if not isinstance(self.value, (list, tuple)):
            self.wrong(f"{self.path} should be a list; got {shown(self.value)}")
            return []
        return [self[position] for position in range(len(self.value))]

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.value, (list, tuple))

    def text(self, what: str = "") -> str | None:
        """The text, or None where it is missing or no text (which joins the problems).

        Args:
            what: What it is, for the problem, where the path alone does not tell.
        """
        if self.missing:
            return None
        value, name = self.value, f"{self.path}: {what}" if what else self.path
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if isinstance(value, float) and math.isinf(value):
                self.wrong(f"{name} should be text; got the number {value}")
                return None
            whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
            return str(int(value)) if whole else str(value)
        if not isinstance(value, str):
            self.wrong(f"{name} should be text; got {shown(value)}")
            return None
        self._check_characters(value)
        return value

    def _check_characters(self, text: str) -> None:
        if text.isascii() and text.isprintable():
            return
        for position, character in enumerate(text):
            if 0xD800 <= ord(character) <= 0xDFFF:
                self.wrong(
                    f"{self.path} holds a lone surrogate (\\u{ord(character):04x} as character {position}): half "
                    f"a character, which no tokenizer reads. Write the whole character, or leave it out"
                )
                return
            # C1 controls are left alone: they are what letters of Windows-1252 become in data that was decoded wrongly.
            if (character < " " or character == "\x7f") and character not in _BREAKS:
                self.wrong(
                    f"{self.path} holds a control character (\\u{ord(character):04x} as character {position}); tab and "
                    f"line break are the only ones a text may have"
                )
                return

    def name(self) -> str | None:
        """An id: a text or number in one line, without control characters; None where it is missing or blank."""
        text = self.text()
        if text is None or not text.strip():
            return None
        if any(unicodedata.category(character) == "Cc" for character in text):
            self.wrong(f"{self.path} should be in one line, without control characters; got {shown(text)}")
        return text

    def texts(self, depth: int = 0) -> list[str]:
        """A text or a list of texts, possibly nested, as a flat list without the missing and blank ones."""
        if not self.is_list:
            text = self.text()
            return [text] if text is not None and text.strip() else []
        if depth == DEPTH:
            self.wrong(f"{self.path[: self.path.index('[')]} is nested deeper than {DEPTH} lists")
            return []
        return [text for entry in self.entries() for text in entry.texts(depth + 1)]

    def first(self) -> str | None:
        """The first of `texts`."""
        return next(iter(self.texts()), None)
