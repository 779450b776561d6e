"""What broke: documents that were right before the edits and wrong after, with both outputs, task by task."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_edit.compare import Flips, is_binary
from lm_eval_edit.flips import records, worsened
from lm_eval_edit.report.comparing import Compared

AT_MOST = 1_000  # items of a whole report, some 2 KB each
SHOWN = 280  # characters of a prompt in view; its end is what the question is in
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
WHOLE = 6_000  # characters of a prompt or an output that are kept at all


@dataclass(frozen=True)
class Text:
    """A text for the page, never longer than the page can bear.

    Attributes:
        short: What is in view: all of it, or its end.
        whole: All of it, as far as kept; None where `short` is that.
        length: Characters of the original.
    """

    short: str
    whole: str | None
    length: int

    @property
    def cut(self) -> bool:
        """Whether even `whole` lacks something."""
        return self.length > WHOLE


@dataclass(frozen=True)
class Item:
    """One document before and after.

    Attributes:
        since: The first checkpoint of the row at which it was worse than before; None at an unedited model.
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
    since: int


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


def broken(rows: Sequence[Sequence[Compared]], most: int) -> tuple[dict[str, list[Broken]], int]:
    """Task -> what each row broke in it, and how many items were shown of each at most.

    Args:
        rows: The cells of each row, ascending.
        most: Items of each row and task; fewer where there would be more than `AT_MOST` in all.
    """
    last = {index: cells for index, cells in enumerate(rows) if any(each.comparison for each in cells)}
    entries = sum(len(_last(cells).headlines) for cells in last.values())
    most = min(most, max(1, AT_MOST // max(entries, 1)))
    found: dict[str, list[Broken]] = {}
    for cells in last.values():
        for task in _last(cells).headlines:
            found.setdefault(task, []).append(_broken(cells, task, most))
    return found, most


def _last(cells: Sequence[Compared]) -> Compared:
    return [each for each in cells if each.comparison][-1]


def _broken(cells: Sequence[Compared], task: str, most: int) -> Broken:
    at = _last(cells)
    head = at.headlines[task]
    pair = at.comparison.pairs[task, head.filter]
    places = worsened(pair, head.metric)[:most]
    since = _since(cells, task, places)
    items = tuple(_items(records(pair, head.metric, places), since))
    binary = is_binary(pair.base.metrics[head.metric], pair.edited.metrics[head.metric])
    return Broken(at, head.metric, head.flips, head.n, binary, items)


def _since(cells: Sequence[Compared], task: str, places: np.ndarray) -> list[int]:
    """For each place the first checkpoint at which it was worse."""
    first = np.full(len(places), -1)
    for each in cells:
        if (head := each.headlines.get(task)) is not None:
            worse = np.isin(places, worsened(each.comparison.pairs[task, head.filter], head.metric))
            first[(first < 0) & worse] = each.cell.n_edits
    return first.tolist()


def _items(found: Iterator[dict[str, Any]], since: Sequence[int]) -> Iterator[Item]:
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
    """The character, or its escape where it would not be seen or would turn the text around it about."""
    unseen = unicodedata.category(character) in ("Cc", "Cs", "Cn") and character not in "\n\t"
    if unseen or unicodedata.bidirectional(character) in _DIRECTIONS:
        return character.encode("unicode_escape").decode()
    return character
