"""What differs between two JSON-able values, in sentences: for a ledger, or a sweep, that belongs to something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_edit._support.files import hash_json

WIDTH = 80  # characters of a value that a sentence has room for
MOST = 5  # elements of a list that are named; thousands of facts may differ


def differences(stored: Any, wanted: Any, path: str = "", where: str = "in the ledger") -> list[str]:
    """What differs between two JSON-able values, one sentence for each leaf; `where` says where `stored` was found.

    Lists too long to be shown whole are compared element by element if they have as many, else by what only one has.
    """
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        keys = list(dict.fromkeys([*stored, *wanted]))
        return [
            line
            for key in keys
            for line in differences(stored.get(key), wanted.get(key), f"{path}.{key}" if path else str(key), where)
        ]
    if hash_json(stored) == hash_json(wanted):  # tuples and lists are the same on disk
        return []
    lists = isinstance(stored, list | tuple) and isinstance(wanted, list | tuple)
    if lists and max(len(repr(stored)), len(repr(wanted))) > WIDTH:
        return _of_lists(stored, wanted, path, where)
    old, new = _cut(repr(stored), repr(wanted))
    return [f"{path} is {old} {where}, {new} now"]


def _of_lists(stored: Sequence[Any], wanted: Sequence[Any], path: str, where: str) -> list[str]:
    if len(stored) == len(wanted):
        pairs = enumerate(zip(stored, wanted, strict=True))
        lines = [line for i, (old, new) in pairs for line in differences(old, new, f"{path}[{i}]", where)]
        more = len(lines) - MOST
        return lines if more <= 0 else [*lines[:MOST], f"{path} has {more} more differences"]
    lines = []
    for mine, other, place in ((stored, wanted, where), (wanted, stored, "now")):
        if alone := _alone(mine, other):
            names = ", ".join(_cut(repr(each))[0] for each in alone[:MOST])
            rest = f" and {len(alone) - MOST} more" if len(alone) > MOST else ""
            lines.append(f"{path} has {names}{rest} only {place}")
    return lines


def _alone(mine: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """The elements of a list that another lacks, as often as it lacks them."""
    left = Counter(hash_json(each) for each in mine) - Counter(hash_json(each) for each in other)
    found = []
    for each in mine:
        name = hash_json(each)
        if left[name] > 0:
            left[name] -= 1
            found.append(each)
    return found


def _cut(*texts: str) -> list[str]:
    """Texts that there is room for; long ones from where they begin to differ."""
    same = next((i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), 0)
    first = 0 if same < WIDTH - 10 else same - 20
    return [_part(text, first) for text in texts]


def _part(text: str, first: int) -> str:
    head = "..." if first else ""
    text = head + text[first:]
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
