"""What broke: documents that were right before the edits and wrong after, with both outputs, task by task."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import escape

from lm_eval_edit.comparison.changed_documents import Flips, is_binary
from lm_eval_edit.comparison.flips import records, worsened
from lm_eval_edit.report.comparing import Compared

AT_MOST = 1_000  # items of a whole report
LARGEST = 5_000_000  # bytes of all their texts that are folded away
SHOWN = 280  # characters of a prompt in view; its end is what the question is in
_JOINERS = "\u200c\u200d"  # they shape the letters and pictures beside them
WHOLE = 6_000  # characters of a prompt or an output that are kept at all
_TEXTS = ("prompt", "target", "before", "after")  # of an item


@dataclass(frozen=True)
class Text:
    """A text for the page, never longer than the page can bear.

    Attributes:
        short: What is in view: all of it, or its end.
        whole: All of it, as far as kept; None where `short` is that, or where the page had no room for more.
        length: Characters of the original.
    """

    short: str
    whole: str | None
    length: int

    @property
    def cut(self) -> bool:
        """Whether even `whole` lacks something."""
        return self.length > WHOLE

    @property
    def shortened(self) -> bool:
        """Whether the page has its end only."""
        return self.whole is None and self.length > SHOWN

    @property
    def size(self) -> int:
        """Bytes of `whole` in the page."""
        return len(str(escape(self.whole or "")).encode("utf-8", "backslashreplace"))


@dataclass(frozen=True)
class Item:
    """One document before and after.

    Attributes:
        since: Where the present run of checkpoints begins at which it was worse than before: it has been worse at every
            compared one since; None in rows whose checkpoints do not build on each other.
        before_value, after_value: The metric of this document; None where it is no number.
        valid: Whether the output after the edits still has the asked form; None where the task does not say.
    """

    doc_id: int
    prompt: Text
    target: Text
    before: Text
    after: Text
    before_value: float | None
    after_value: float | None
    valid: bool | None
    since: int | None


@dataclass(frozen=True)
class Broken:
    """The documents of one task that one row of edits broke.

    Attributes:
        at: The row's last checkpoint with figures: what is shown is the state there.
        binary: Whether documents are simply right or wrong; else the largest losses are shown.
        items: The first of them.
    """

    at: Compared
    metric: str
    flips: Flips
    n: int
    binary: bool
    items: tuple[Item, ...]


@dataclass(frozen=True)
class AllBroken:
    """What all rows broke.

    Attributes:
        tasks: Task -> what each row broke in it.
        most: How many items are shown of each row and task at most.
        shortened: Whether `LARGEST` was reached, from where on only the ends of long texts are kept.
    """

    tasks: dict[str, list[Broken]]
    most: int
    shortened: bool


def broken(rows: Sequence[Sequence[Compared]], most: int) -> AllBroken:
    """What was broken in each task.

    Args:
        rows: The cells of each row, ascending.
        most: Items of each row and task; fewer where there would be more than `AT_MOST` in all.
    """
    last = {index: cells for index, cells in enumerate(rows) if any(each.comparison for each in cells)}
    entries = sum(len(_last(cells).headlines) for cells in last.values())
    most = min(most, max(1, AT_MOST // max(entries, 1)))
    found: dict[str, list[Broken]] = {}
    room = LARGEST
    for cells in last.values():
        for task in _last(cells).headlines:
            group = _broken(cells, task, most)
            items = []
            for item in group.items:
                room -= sum(getattr(item, name).size for name in _TEXTS)
                items.append(item if room >= 0 else _shortened(item))
            found.setdefault(task, []).append(replace(group, items=tuple(items)))
    return AllBroken(found, most, room < 0)


def _shortened(item: Item) -> Item:
    return replace(item, **{name: replace(getattr(item, name), whole=None) for name in _TEXTS})


def _last(cells: Sequence[Compared]) -> Compared:
    return [each for each in cells if each.comparison][-1]


def _broken(cells: Sequence[Compared], task: str, most: int) -> Broken:
    at = _last(cells)
    head = at.headlines[task]
    assert at.comparison is not None and head.flips is not None, "a row with a headline is compared by documents"
    pair = at.comparison.pairs[task, head.filter]
    places = worsened(pair, head.metric)[:most]
    since = _since(cells, task, places)
    items = tuple(_items(records(pair, head.metric, places), since))
    binary = is_binary(pair.base.metrics[head.metric], pair.edited.metrics[head.metric])
    return Broken(at, head.metric, head.flips, head.n, binary, items)


def _since(cells: Sequence[Compared], task: str, places: np.ndarray) -> list[int | None]:
    """For each place where the last run of checkpoints begins at which it was worse; None where rows have no runs."""
    if cells[0].row.at_once:
        return [None] * len(places)
    first, still = np.full(len(places), -1), np.full(len(places), True)
    for each in reversed(cells):
        if each.comparison is not None and (head := each.headlines.get(task)) is not None:
            still &= np.isin(places, worsened(each.comparison.pairs[task, head.filter], head.metric))
            first[still] = each.cell.n_edits
    return first.tolist()


def _items(found: Iterator[dict[str, Any]], since: Sequence[int | None]) -> Iterator[Item]:
    for record, n_edits in zip(found, since, strict=True):
        before, after = record["base"], record["edited"]
        valid = after.get("valid")
        yield Item(
            doc_id=record["doc_id"],
            prompt=text(record["prompt"]),
            target=text(record["target"]),
            before=text(before["output"]),
            after=text(after["output"]),
            before_value=_number(before["value"]),
            after_value=_number(after["value"]),
            valid=None if valid is None else bool(valid),
            since=n_edits,
        )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def text(value: Any) -> Text:
    """Anything that was logged, as text that HTML can hold.

    Characters that HTML or UTF-8 have no room for, or that nobody sees (a broken model emits control characters and
    halves of pairs), are written as escapes.
    """
    given = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    whole = "".join(map(_visible, given[:WHOLE]))
    if len(given) <= SHOWN:
        return Text(whole, None, len(given))
    return Text("".join(map(_visible, given[-SHOWN:])), whole, len(given))


def _visible(character: str) -> str:
    """The character, or its escape where it would not be seen (and might turn the text around it about)."""
    unseen = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") and character not in "\n\t" + _JOINERS
    return character.encode("unicode_escape").decode() if unseen else character
