"""What a block computes before anything that is trained of it: kept from the first pass over a row, and given again.

Where a down-projection is trained, that is the block's attention, its norms, and what leads into the down-projection.
Which modules they are is seen in a pass: those that have ended before one with a trained weight begins. Their outputs
are handed on in place of being computed, and all else in the block is its own code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lm_eval_edit.models.bridging import forwards


@dataclass(frozen=True)
class _Form:
    """How a module gives a tensor: as (R, T, ·) or flat, alone or as the first of a tuple whose others are None."""

    flat: bool
    beside: int | None

    @classmethod
    def of(cls, output: Any, positions: int) -> _Form | None:
        """Of what a module has given for so many positions; None for another."""
        first, *others = output if isinstance(output, tuple) and output else (output,)
        if not isinstance(first, Tensor) or first.requires_grad or any(other is not None for other in others):
            return None
        if first.ndim not in (2, 3) or first.numel() != positions * first.shape[-1]:
            return None
        return cls(first.ndim == 2, len(others) if isinstance(output, tuple) else None)

    def made(self, states: Tensor) -> Any:
        """Of (R, T, ·)."""
        shaped = states.flatten(0, 1) if self.flat else states
        return shaped if self.beside is None else (shaped, *(None,) * self.beside)


class Steady:
    """What stays the same in one block from pass to pass, row by row.

    Args:
        model: The model.
        path: The block's path; nothing that enters it changes.
        lengths: How many tokens each row has, by the row's number.
        limit: Bytes that may be kept.
    """

    def __init__(self, model: nn.Module, path: str, lengths: Sequence[int], limit: int):
        self._model, self._path, self._lengths, self._room = model, path, lengths, limit
        self._forms: dict[nn.Module, _Form] = {}  # what a first pass has shown
        self._rows: dict[int, dict[nn.Module, Tensor]] = {}

    def knows(self, rows: Sequence[int]) -> bool:
        """Whether there is something to hand on for all of these rows."""
        return bool(self._forms) and all(row in self._rows for row in rows)

    @contextlib.contextmanager
    def kept(self, rows: Sequence[int], trained: Collection[str]) -> Iterator[None]:
        """Within the block a pass over `rows`, padded on the right, leaves behind what stays as it is.

        Args:
            rows: The number of each row.
            trained: Names of all parameters that are trained.
        """
        owners = {name.rpartition(".")[0] for name in trained if name.startswith(self._path + ".")}
        outputs: dict[nn.Module, Any] = {}
        begun: list[bool] = []

        def begins(module: nn.Module, args: tuple[Any, ...]) -> None:
            begun.append(True)

        def ends(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not begun:
                outputs[module] = None if module in outputs else output  # one that is called twice is left alone

        with contextlib.ExitStack() as stack:
            for owner in owners:
                stack.callback(self._model.get_submodule(owner).register_forward_pre_hook(begins).remove)
            for module in self._beside(owners):
                stack.callback(module.register_forward_hook(ends).remove)
            yield
        self._keep(rows, outputs if begun else {})

    def _beside(self, owners: Collection[str]) -> list[nn.Module]:
        """The largest modules of the block with nothing trained in them."""
        found = []
        for path, module in self._model.get_submodule(self._path).named_modules():
            full, parent = f"{self._path}.{path}", f"{self._path}.{path}".rpartition(".")[0]
            if path and not _holds(full, owners) and _holds(parent, owners):
                found.append(module)
        return found

    def _keep(self, rows: Sequence[int], outputs: dict[nn.Module, Any]) -> None:
        width = max(self._lengths[row] for row in rows)
        forms = {module: _Form.of(output, len(rows) * width) for module, output in outputs.items()}
        known = {module: form for module, form in forms.items() if form is not None}
        self._forms = self._forms or known
        if self._forms.keys() != known.keys():
            return
        states = {
            module: outputs[module] if form.beside is None else outputs[module][0] for module, form in known.items()
        }
        states = {module: state.detach().reshape(len(rows), width, -1) for module, state in states.items()}
        for place, row in enumerate(rows):
            own = {module: state[place, : self._lengths[row]] for module, state in states.items()}
            size = sum(t.numel() * t.element_size() for t in own.values())
            if row not in self._rows and size <= self._room:
                self._room -= size
                self._rows[row] = {module: t.clone() for module, t in own.items()}

    @contextlib.contextmanager
    def handed_on(self, rows: Sequence[int]) -> Iterator[None]:
        """Within the block a pass over rows that are known, padded on the right, computes none of it again."""
        instead: dict[nn.Module, Callable[..., Any]] = {}
        for module, form in self._forms.items():
            given = form.made(stacked([self._rows[row][module] for row in rows]))
            instead[module] = lambda *args, _given=given, **kwargs: _given
        with forwards(instead):
            yield


def _holds(path: str, owners: Collection[str]) -> bool:
    return any(owner == path or owner.startswith(path + ".") for owner in owners)


def stacked(rows: Sequence[Tensor]) -> Tensor:
    """(R, T, ·) of rows (T_r, ·); zeros where a row has ended, which nothing before it sees."""
    out = rows[0].new_zeros(len(rows), max(map(len, rows)), rows[0].shape[-1])
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out
