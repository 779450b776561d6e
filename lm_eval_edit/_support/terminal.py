"""Text from outside (names of tasks and facts, samples, paths) in a form that no terminal and no parser acts upon."""

from __future__ import annotations

import json
import re
from typing import Any

# C0 and C1 controls but for tab and newline; the marks that reorder what is read; halves of surrogate pairs, which no
# encoding takes; and the two characters that no XML document may hold.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LINES = re.compile("[\t\n\u2028\u2029]")


def printable(text: str) -> str:
    """The text with every character that a terminal would act upon written as its escape, such as `\\x1b`.

    Line ends and tabs stay; a carriage return, which lets a line overwrite what stands before it, does not. What comes
    out can be encoded as UTF-8 and is legal in XML.
    """
    return _UNSAFE.sub(_escaped, text)


def one_line(text: str) -> str:
    """`printable`, for names and cells: line ends and tabs are written as escapes too."""
    return _LINES.sub(_escaped, printable(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("ascii", "backslashreplace").decode() if found[0] > "\x7f" else _short(found[0])


def _short(character: str) -> str:
    return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}.get(character, f"\\x{ord(character):02x}")


def printable_json(content: Any, indent: int | None = None) -> str:
    """JSON that any terminal and any encoding takes: what `printable` escapes stands there in JSON's own escapes."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
