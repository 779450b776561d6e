"""What a form of records is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_edit.facts.fields import Field

Values = dict[str, Any]
"""A fact as fields of the package's own form; `locality` as (prompt, answer) pairs, `portability` as `Question`s."""


@dataclass(frozen=True)
class Form:
    """One way to write a fact.

    Args:
        name: What errors call it.
        required: The fields by which it is known, each with its other names; a path for those of an object.
        read: Its facts, as fields of the package's own form.
        slot_first: Whether `{}` in a prompt is the subject's place though the subject stands in it in clear, too.
        several: Whether a record may hold several facts, which are told apart by a number behind its id.
        remark: What a reader of an error about such a record should know; empty for nothing.
    """

    name: str
    required: tuple[tuple[str, ...], ...]
    read: Callable[[Field], list[Values]]
    slot_first: bool = False
    several: bool = False
    remark: str = ""


def lacking(r: Field, required: tuple[tuple[str, ...], ...]) -> list[str]:
    """The required fields that are not there; an object that is none is told by its path, one that is null is empty."""
    found = []
    for names in required:
        *above, _ = names[0].split(".")
        holder = r[above[0]] if above else r
        absent = bool(above) and isinstance(r.value, Mapping) and not r.has(above[0])
        if absent or (isinstance(holder.value, Mapping) and not any(holder.has(name.split(".")[-1]) for name in names)):
            found.append(names[0])
    return found


def either(r: Field, *names: str) -> Field:
    """The first of these fields that holds something."""
    return next((r[name] for name in names if r.has(name) and not r[name].missing), r[names[0]])


def check_beside(r: Field, question: str, *answers: str) -> None:
    """Questions come with their answers: without any of these fields they are a problem, with an empty one they are not
    asked."""
    if r[question].texts() and not any(r.has(name) for name in answers):
        r.wrong(f"field '{answers[0]}' is missing: '{question}' is there, and needs its answer")
