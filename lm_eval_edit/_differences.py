"""What differs between two JSON-able values, in sentences: for a ledger, or a sweep, that belongs to something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_edit._files import hash_json


def differences(stored: Any, wanted: Any, path: str = "", where: str = "in the ledger") -> list[str]:
    """What differs between two JSON-able values, one sentence for each leaf; `where` says where `stored` was found."""
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        keys = list(dict.fromkeys([*stored, *wanted]))
        return [
            line
            for key in keys
            for line in differences(stored.get(key), wanted.get(key), f"{path}.{key}" if path else str(key), where)
        ]
    same = hash_json(stored) == hash_json(wanted)  # tuples and lists are the same on disk
    return [] if same else [f"{path} is {_short(stored)} {where}, {_short(wanted)} now"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
