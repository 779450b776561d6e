"""Where a subject stands in a prompt: by the place of characters, so that braces elsewhere are the text's own."""

from __future__ import annotations

import re

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.subject_span import may_be_word, subject_span

SLOT = "{}"


class Template(str):
    """A text with `{}` at one place, which it knows: braces elsewhere are the text's own.

    Args:
        before, after: What stands on both sides of the place.

    Attributes:
        slot: At which character the place begins.
    """

    slot: int

    def __new__(cls, before: str, after: str) -> Template:
        made = super().__new__(cls, before + SLOT + after)
        made.slot = len(before)
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # those of our `__new__`, not of str's
        return self.sides

    @classmethod
    def of(cls, text: str) -> Template:
        """A text as a template: one already, or with its first `{}` as the place."""
        return text if isinstance(text, cls) else cls(*text.split(SLOT, 1))

    @property
    def sides(self) -> tuple[str, str]:
        """What stands before the place, and what stands behind it."""
        return self[: self.slot], self[self.slot + len(SLOT) :]

    def about(self, text: str) -> str:
        """The text with something at the place."""
        before, after = self.sides
        return before + text + after


def subject_place(prompt: str, subject: str) -> tuple[int, int] | str:
    """Where the subject's place in a prompt begins and ends; the problem in words where that is not plain.

    The place is `{}`, or the subject in clear: its first occurrence as a word, else its first at all. Braces that are a
    part of the subject are no place, nor are several beside the subject in clear.
    """
    span = subject_span(prompt, subject)
    if subject.strip() in SLOT and subject.strip() != SLOT:  # a single brace: those of `{}` are no subject in clear
        slots = [found.start() for found in re.finditer(re.escape(SLOT), prompt)]
        span = None if slots else span
    else:
        pattern = rf"(?P<own>{re.escape(subject)})|{re.escape(SLOT)}"
        slots = [found.start() for found in re.finditer(pattern, prompt) if found["own"] is None]
    word = span is not None and may_be_word(prompt, *span)
    if len(slots) == 1 and word and span is not None:
        return (
            f"the prompt {prompt!r} holds {SLOT} and the subject {subject!r} in clear: say in subject_at which is the "
            f"subject's place ({slots[0]} or {span[0]})"
        )
    if len(slots) == 1:
        return slots[0], slots[0] + len(SLOT)
    if slots and not word:
        return f"the prompt holds {SLOT} more than once"
    if span is None:
        reason = f"the subject {subject!r} is not in the prompt {prompt!r}"
        if other := subject_span(prompt, subject, any_case=True):
            reason += f"; {prompt[slice(*other)]!r} differs from it in upper and lower case only"
        return reason
    return span


def place_at(prompt: str, subject: str, start: int) -> tuple[int, int] | None:
    """Where what stands at a character ends: the subject in clear, or `{}`."""
    ends = (start + len(each) for each in (subject, SLOT) if each and start >= 0 and prompt.startswith(each, start))
    return next(((start, end) for end in ends), None)


def with_slot(prompt: str, subject: str) -> Template:
    """`prompt` with `{}` in place of the subject (as it is when it already holds `{}`).

    Raises:
        UserError: the subject's place is not plain.
    """
    place = subject_place(prompt, subject)
    if isinstance(place, str):
        raise UserError(place)
    return Template(prompt[: place[0]], prompt[place[1] :])


def in_clear(prompt: str, subject: str) -> str:
    """`prompt` with the subject in place of `{}`; as it is where the subject stands in it in clear, or no `{}` does."""
    if not subject.strip():
        return prompt
    place = subject_place(prompt, subject)
    if isinstance(place, tuple):
        return Template(prompt[: place[0]], prompt[place[1] :]).about(subject)
    return prompt if subject in prompt or SLOT not in prompt else Template.of(prompt).about(subject)
