"""What a schedule's earlier operations have left, and what an editor sums up of it, each operation taken up once.

An editor is pure: what it knows of earlier operations is what they left in the ledger. Reading all of it anew for every
operation makes a run's cost grow with the square of its length; a sum over it is kept with it instead, and is the same,
bit for bit, whether the operations came one by one or were read from a ledger: they are taken up in order, one at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

T = TypeVar("T")


class History(Sequence[Mapping[str, Tensor]]):
    """The states (`EditResult.state`) of a schedule's operations, first to last.

    Args:
        states: Those there are.
    """

    def __init__(self, states: Iterable[Mapping[str, Tensor]] = ()):
        self._states = list(states)
        self._sums: dict[Hashable, tuple[int, Any]] = {}

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]]) -> History:
        """`states` itself where it is a history, with the sums it holds."""
        return states if isinstance(states, History) else cls(states)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Tensor]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Tensor]]: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]:
        return self._states[index]

    def __len__(self) -> int:
        return len(self._states)

    def append(self, state: Mapping[str, Tensor]) -> None:
        """Add the state of the operation that has just been done."""
        self._states.append(state)

    def summed(self, name: Hashable, start: Callable[[], T], add: Callable[[T, Mapping[str, Tensor]], T]) -> T:
        """`add` applied to every state, first to last, beginning with `start()`; only those not taken up before.

        Args:
            name: Of the sum: everything that `start` and `add` depend on beside the states.
            start: Makes the sum of no state.
            add: (the sum so far, the next state) -> the sum; it may change the one it is given.
        """
        # Not there while it is added to: a sum that an error left half done must not be gone on with.
        taken, total = self._sums.pop(name, None) or (0, start())
        for state in self._states[taken:]:
            total = add(total, state)
        self._sums[name] = (len(self._states), total)
        return total
