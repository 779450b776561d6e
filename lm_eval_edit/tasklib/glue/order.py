"""The published order of a set's records, rebuilt: the lists themselves are pickles that come without a licence."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

from lm_eval_edit.tasklib.glue.catalogue import BALANCED

SEED = 37


def published(labels: Sequence[int], order: str) -> list[int]:
    """Which record each item of the published list is.

    Args:
        labels: Of the records in the order of their file.
        order: One of `catalogue`'s.
    """
    return balanced(labels) if order == BALANCED else from_the_end(labels)


def _by_label(labels: Sequence[int]) -> list[list[int]]:
    """Records of each label; the labels in the order in which they first come."""
    lists: dict[int, list[int]] = {}
    for record, label in enumerate(labels):
        lists.setdefault(label, []).append(record)
    return list(lists.values())


def balanced(labels: Sequence[int]) -> list[int]:
    """The records of each label shuffled, then one of each in turn, as far as the shortest list goes.

    One generator, seeded anew for each set, shuffles the lists one after the other.
    """
    lists, rng = _by_label(labels), random.Random(SEED)
    for records in lists:
        rng.shuffle(records)
    return [record for turn in zip(*lists, strict=False) for record in turn]


def from_the_end(labels: Sequence[int]) -> list[int]:
    """The last record of each label, then the last but one, and so on; at the end what is left of the longer lists."""
    lists = [records[::-1] for records in _by_label(labels)]
    turns = range(max(map(len, lists), default=0))
    return [records[turn] for turn in turns for records in lists if turn < len(records)]


def as_listed(names: Sequence[str]) -> list[int]:
    """Files in the order in which a Mac's file system (APFS) lists a folder of them: that of hashes of their names.

    A set that is a folder, one file a record, has no order but that in which it was listed. The hash is the lower 22
    bits of the CRC-32C (not inverted at the end) of the name in UTF-32, in lower case and decomposed.

    Args:
        names: Of the files, with their endings.
    """
    return sorted(range(len(names)), key=lambda place: _crc32c(_normal(names[place])) & 0x3FFFFF)


def _normal(name: str) -> bytes:
    return unicodedata.normalize("NFD", name.casefold()).encode("utf-32-le", "surrogatepass")


def _crc32c(text: bytes) -> int:
    """CRC-32C (Castagnoli; reflected polynomial 0x82F63B78), without the inversion at the end."""
    crc = 0xFFFFFFFF
    for byte in text:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
