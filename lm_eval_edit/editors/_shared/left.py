"""What stands left of the prompts, run once: rows of one operation begin with the same few context templates.

Aligned rows (`rows.align`) are cut at a column. Of what lies left of it each beginning is run once, by itself, and its
keys and values are handed to every row that begins so. Equal to running every row whole, up to round-off.

A fact alone shares nothing within its operation. But on weights that an earlier operation has had, bit for bit, the
beginnings have the keys and values they had then; on a CPU, where they take a tenth of an edit, those are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_edit.editors._shared.head import reading
from lm_eval_edit.editors._shared.rows import AlignedRows
from lm_eval_edit.models import naming
from lm_eval_edit.weights.fingerprint import model_fingerprint, tensor_hash

KeysValues = list[tuple[Tensor, Tensor]]

SAVED = 0.9  # a cut leaves at most this share of the positions; a pass more is not worth less
KEPT_ON = frozenset({"cpu"})
"""The kinds of devices on which they are: on others a hash of all weights costs a copy of them to main memory."""
KEPT_BYTES = 2**28
"""What may be kept of one model's beginnings between operations."""


@dataclass(frozen=True)
class Left:
    """What aligned rows have left of a column.

    Attributes:
        cut: The column.
        beginnings: (U, P) the longest beginnings, padded on the right.
        source: (R,) which of them each row begins like.
        lengths: (R,) tokens of each row left of the cut.
    """

    cut: int
    beginnings: Tensor
    source: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, rows: AlignedRows, cut: int) -> Left:
        """Of what `rows` have left of column `cut`, which is not right of their subjects."""
        parts = _parts(rows, cut)
        longest = _longest(parts)
        device = rows.input_ids.device
        ids = torch.zeros(len(longest), max(map(len, longest)), dtype=torch.long)
        for number, part in enumerate(longest):
            ids[number, : len(part)] = torch.tensor(part)
        place = {part[:length]: number for number, part in enumerate(longest) for length in range(len(part) + 1)}
        return cls(
            cut,
            ids.to(device),
            torch.tensor([place[part] for part in parts], device=device),
            torch.tensor([len(part) for part in parts], device=device),
        )

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of a pass over the beginnings: padding on the right needs no mask."""
        positions = torch.arange(self.beginnings.shape[1], device=self.beginnings.device)
        return {
            "input_ids": self.beginnings,
            naming.MASK: torch.ones_like(self.beginnings),
            naming.POSITIONS: positions.expand_as(self.beginnings),
        }

    def spread(self, states: Tensor) -> Tensor:
        """(R, heads, cut, width) keys or values of the rows, from the beginnings' (U, heads, P, width).

        Where a row has not begun, there is something finite, which the mask hides.
        """
        source, lengths = self.source.to(states.device), self.lengths.to(states.device)
        at = torch.arange(self.cut, device=states.device) - (self.cut - lengths[:, None])
        return states[source[:, None], :, at.clamp(min=0)].transpose(1, 2)


def _parts(rows: AlignedRows, cut: int) -> list[tuple[int, ...]]:
    """The tokens of each row left of a column."""
    starts = (rows.attention_mask == 0).sum(dim=1).tolist()
    return [tuple(ids[start:cut]) for ids, start in zip(rows.input_ids.tolist(), starts, strict=True)]


def _longest(parts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that no other begins like, in the order of their first appearance."""
    proper = {part[:length] for part in set(parts) for length in range(len(part))}
    return [part for part in dict.fromkeys(parts) if part not in proper]


def shared_cut(rows: AlignedRows) -> int:
    """The column left of which so much is shared that it is worth a pass of its own; 0 where there is none.

    A cut costs what stands right of it, and left of it the beginnings that no other begins like (`Left`), each as wide
    as the longest. They are the leaves of a tree of tokens, which grows by each row's next token from cut to cut.
    """
    parts = _parts(rows, rows.column + 1)
    count, width = rows.input_ids.shape
    nodes: dict[tuple[int, int], int] = {}  # by the node it hangs on and its token
    leaves: set[int] = set()
    at = [0] * count
    found, best = 0, SAVED * count * width
    for cut in range(1, rows.column + 2):
        for row, part in enumerate(parts):
            length = cut - (rows.column + 1 - len(part))  # of what the row has left of the cut
            if length <= 0:
                continue
            step = at[row], part[length - 1]
            if step not in nodes:
                nodes[step] = len(nodes) + 1
                leaves.discard(at[row])
                leaves.add(nodes[step])
            at[row] = nodes[step]
        cost = count * (width - cut) + len(leaves) * cut
        if cut <= rows.column and cost < best:
            found, best = cut, cost
    return found if sum(map(len, parts)) - len(nodes) >= (1 - SAVED) * count * width else 0


def keeps_all(model: PreTrainedModel, n_layers: int) -> bool:
    """Whether keys and values of every layer are all that a model keeps from token to token, so that it can be cut."""
    kept = naming.kept(model)
    return kept.name is not None and kept.other == 0 and kept.layers == n_layers


@torch.no_grad()
def run(model: PreTrainedModel, left: Left) -> KeysValues:
    """(keys, values) of the beginnings (U, heads, P, width), of each layer."""
    cache = naming.cache_with()
    inputs = left.inputs()
    if not naming.accepts(model, naming.POSITIONS):
        del inputs[naming.POSITIONS]
    nowhere = torch.zeros(0, dtype=torch.long)
    with reading(model, nowhere, nowhere):
        model(**inputs, **naming.with_cache(model, cache))
    return [layer for layer in naming.keys_and_values(cache) if layer is not None]


# -------------------------------------------------------------------------------------------------- between operations


@dataclass
class _Known:
    """What is known of a model whose weights may have changed since.

    Attributes:
        edited: A hash of the matrix that edits change.
        weights: A hash of all weights, and
        beginnings: what was run on them, with
        states: its keys and values; None where the matrix alone was looked at.
    """

    edited: str
    weights: str = ""
    beginnings: Tensor | None = None
    states: KeysValues | None = None


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def run_or_known(model: PreTrainedModel, left: Left, edited: Tensor) -> KeysValues:
    """As `run`, to the bit; on the same weights and the same beginnings as the last time, what was found then.

    Args:
        edited: The matrix that edits change. In a run whose every operation changes it nothing is kept, and of all
            weights it alone is hashed.
    """
    changing = tensor_hash(edited)
    known = _known.setdefault(model, _Known(changing))
    if known.edited != changing:
        _known[model] = _Known(changing)
        return run(model, left)
    weights = model_fingerprint(model)
    same = known.beginnings is not None and torch.equal(known.beginnings, left.beginnings)
    if known.states is not None and same and known.weights == weights:
        return known.states
    states = run(model, left)
    if sum(t.numel() * t.element_size() for pair in states for t in pair) <= KEPT_BYTES:
        _known[model] = _Known(changing, weights, left.beginnings, states)
    return states
