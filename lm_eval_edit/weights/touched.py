"""What edits have reached of one parameter: all of it, or some slices of a 3-D one, with what is needed to undo it.

A layer's experts can be gigabytes, of which an edit changes a few: only those are copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lm_eval_edit.weights.delta import Delta
from lm_eval_edit.weights.fingerprint import hash_of_json, tensor_hash
from lm_eval_edit.weights.stacked import SliceWise

#: Where a piece lies: a slice along the first dimension, or None for the whole parameter.
Place = int | None
#: Pieces as they stood: value and exact running sum of each.
Copies = Mapping[Place, tuple[Tensor, Tensor | None]]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype edits are computed in for a model of `dtype`: float32 at least, never narrower than the model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class Piece:
    """The whole of a parameter or one slice of it: its original and, in half precision, the exact running sum.

    Attributes:
        parameter: Which it is of.
        place: Where in it.
        original: Its bits before any edit.
        master: float32 W_n; None when the parameter itself is wide enough to hold the sum.
        hashes: Of its bits as the last change left them, by the hash's name.
    """

    parameter: nn.Parameter
    place: Place
    original: Tensor
    master: Tensor | None
    hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, parameter: nn.Parameter, place: Place) -> Piece:
        """A piece that is still as it was."""
        live = parameter.detach() if place is None else parameter.detach()[place]
        wide = wide_dtype(live.dtype)
        return cls(parameter, place, live.clone(), None if live.dtype == wide else live.to(wide))

    @property
    def live(self) -> Tensor:
        """The parameter's own memory of it."""
        data = self.parameter.data
        return data if self.place is None else data[self.place]

    @property
    def exact(self) -> Tensor:
        """W_n as far as it is known; not to be changed."""
        return self.live if self.master is None else self.master

    def add(self, delta: Delta) -> None:
        """Add an update of its shape."""
        self.hashes.clear()
        if self.master is None:
            delta.add_to_(self.live)
        else:
            delta.add_to_(self.master)
            self.live.copy_(self.master)

    def set(self, value: Tensor, master: Tensor | None) -> None:
        """Give it other bits."""
        self.hashes.clear()
        self.live.copy_(value)
        if self.master is not None and master is not None:
            self.master.copy_(master)

    def hash(self, name: str, unseen: bool) -> str:
        """See `EditedWeights.fingerprint`."""
        if unseen or name not in self.hashes:
            self.hashes[name] = tensor_hash(self.live, name)
        return self.hashes[name]

    def norms(self) -> tuple[float, float, float, float]:
        """‖ΔW‖, ‖W₀‖, largest |ΔW|, and what the cast to the parameter's dtype has lost (a norm)."""
        original = self.original.to(self.exact.dtype)
        change = self.exact - original
        lost = 0.0 if self.master is None else float((self.live.to(change.dtype) - self.master).norm())
        return float(change.norm()), float(original.norm()), float(change.abs().max()), lost


class Touched:
    """One parameter that edits have reached.

    Args:
        parameter: Which.
    """

    def __init__(self, parameter: nn.Parameter):
        self.parameter = parameter
        self.pieces: dict[Place, Piece] = {}

    @property
    def is_whole(self) -> bool:
        """Whether all of it is kept, and not some slices alone."""
        return None in self.pieces

    def add(self, delta: Delta) -> None:
        """Add an update: to the slices that it names, or to the whole."""
        if not isinstance(delta, SliceWise):
            self._whole().add(delta)
        elif self.is_whole:
            self.pieces[None].add(delta)
        else:
            for place, one in delta.slices():
                self._slice(place).add(one)

    def _slice(self, place: int) -> Piece:
        if place not in self.pieces:
            self.pieces[place] = Piece.of(self.parameter, place)
        return self.pieces[place]

    def _whole(self) -> Piece:
        """The whole as one piece, whatever slices edits have reached before."""
        if not self.is_whole:
            whole = Piece.of(self.parameter, None)
            for place, piece in self.pieces.items():
                whole.original[place] = piece.original
                if whole.master is not None:
                    whole.master[place] = piece.exact
            self.pieces = {None: whole}
        return self.pieces[None]

    def restore(self) -> None:
        """Put the original bits back and forget them."""
        for piece in self.pieces.values():
            piece.live.copy_(piece.original)
        self.pieces.clear()

    def copies(self) -> Copies:
        """What it holds now, for `put_back`."""
        return {
            place: (piece.live.clone(), None if piece.master is None else piece.master.clone())
            for place, piece in self.pieces.items()
        }

    def put_back(self, copies: Copies) -> None:
        """Bring it to what `copies` saw; what has been reached since then is as it was before any edit."""
        if self.pieces.keys() - copies.keys():
            self.restore()
        for place, (value, master) in copies.items():
            if place not in self.pieces:
                self.pieces[place] = Piece.of(self.parameter, place)
            self.pieces[place].set(value, master)

    def change(self) -> tuple[Tensor, Tensor]:
        """W₀ and W_n − W₀ of the whole parameter, in the wide dtype."""
        if self.is_whole:
            original = self.pieces[None].original.to(self.pieces[None].exact.dtype)
            return original, self.pieces[None].exact - original
        original = self.parameter.detach().to(wide_dtype(self.parameter.dtype), copy=True)
        change = torch.zeros_like(original)
        for place, piece in self.pieces.items():
            original[place] = piece.original
            change[place] = piece.exact - original[place]
        return original, change

    def figures(self) -> dict[str, float | dict[str, dict[str, float]]]:
        """See `EditedWeights.report`."""
        norms = {place: self.pieces[place].norms() for place in sorted(self.pieces, key=lambda place: place or 0)}
        found = list(norms.values())
        change, lost = (math.hypot(*(norm[which] for norm in found)) for which in (0, 3))
        base = math.hypot(*(norm[1] for norm in found), *self._untouched_norms())
        whole = _entry(change, base, max((norm[2] for norm in found), default=0.0), lost)
        if self.is_whole:
            return dict(whole)
        return {**whole, "slices": {str(place): _entry(*norm) for place, norm in norms.items()}}

    def _untouched_norms(self) -> Iterator[float]:
        if not self.is_whole:
            for place, one in enumerate(self.parameter.data):
                if place not in self.pieces:
                    yield float(one.to(wide_dtype(one.dtype)).norm())

    def problem(self) -> str | None:
        """What a guard must know, after the parameter's name."""
        if not all(bool(torch.isfinite(piece.live).all()) for piece in self.pieces.values()):
            return "holds values that are not finite"
        if all(torch.equal(piece.live, piece.original) for piece in self.pieces.values()):
            return "did not change"
        return None

    def hash(self, name: str, unseen: bool) -> str:
        """Of its bits; of those of the slices alone where no more was reached."""
        found = {str(place): piece.hash(name, unseen) for place, piece in self.pieces.items()}
        return next(iter(found.values())) if self.is_whole else hash_of_json(found, name)


def _entry(norm: float, base: float, largest: float, lost: float) -> dict[str, float]:
    return {
        "delta_norm": norm,
        "weight_norm": base,
        "relative_norm": norm / base if base else float("inf"),
        "delta_max": largest,
        "rounding_loss": lost / norm if norm else 0.0,
    }
