"""What comes from outside is shown, never acted upon: `_terminal`."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lm_eval_edit._support.terminal import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "a\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),  # the one-character form of ESC [
        ("safe\rover", "safe\\rover"),
        ("\x7f\x00", "\\x7f\\x00"),
        ("half \ud83d of a pair", "half \\ud83d of a pair"),
        ("abc\u202etxt.exe", "abc\\u202etxt.exe"),
        ("\ufffe", "\\ufffe"),
    ],
)
def test_printable_writes_what_a_terminal_acts_upon_as_escapes(text, shown):
    assert printable(text) == shown
    printable(text).encode()
    ElementTree.fromstring(f"<a>{printable(text)}</a>")


def test_printable_leaves_text_alone():
    for text in ("two\nlines\tand a tab", "Zürich 東京 العربية 👩‍👩‍👧", "back\\slash", ""):
        assert printable(text) == text


def test_one_line_has_no_line_ends():
    assert one_line("a\nb\tc\u2028d\x1b") == "a\\nb\\tc\\u2028d\\x1b"
