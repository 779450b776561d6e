"""Whether edits took: how many facts are answered as edited, told after every run, demanded by `min_success`.

An edit counts where the model answers the fact's own prompt with the new object, every token of it the likeliest. "Not
the old answer" is no success: a damaged model says anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Below this share a run is warned of.
FEW = 0.5


@dataclass(frozen=True)
class Success:
    """How a run's edits took.

    Attributes:
        edits: Facts edited.
        after_own: Of them, those answered right after their own operation.
        at_end: Those answered right by the weights as they stand, with all the operations applied.
        closed: For methods that aim at a target for the residual stream, the share of the way to it that their updates
            went, in the mean over the facts; None for the others.
        in_chat: Whether they were made, and are asked, inside the model's chat template.
    """

    edits: int
    after_own: int
    at_end: int
    closed: float | None = None
    in_chat: bool = False

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], at_end: Mapping[str, float], in_chat: bool = False) -> Success:
        """From the records of the operations applied, and `retained` of the guards.

        Args:
            records: As in the ledger.
            at_end: `n` and `em` of all facts on the weights as they stand.
            in_chat: Whether both are of answers inside the chat template.
        """
        edits = sum(record["after"]["n"] for record in records)
        after_own = sum(round(record["after"]["em"] * record["after"]["n"]) for record in records)
        closed = [(record["details"].get("closed"), record["after"]["n"]) for record in records]
        share = None
        if closed and all(value is not None for value, _ in closed):
            share = sum(value * n for value, n in closed) / edits
        return cls(edits, after_own, round(at_end["em"] * at_end["n"]), share, in_chat)

    @property
    def share(self) -> float:
        """The smaller of the two shares: an edit that took and was lost again is as little use as one that did not."""
        return min(self.after_own, self.at_end) / self.edits

    def line(self) -> str:
        """All of it in one line."""
        closed = "" if self.closed is None else f"; residual closed {100 * self.closed:.0f} %"
        where = " inside the chat template" if self.in_chat else ""
        return (
            f"{self.edits} edit{'s' * (self.edits != 1)}{where}: {self.after_own} answered right after their own edit, "
            f"{self.at_end} at the end{closed}"
        )

    def record(self) -> dict[str, Any]:
        """For the guards in the results."""
        return {
            "edits": self.edits,
            "right_after_own_edit": self.after_own,
            "right_at_end": self.at_end,
            "residual_closed": self.closed,
            "edits_took_ok": self.share >= FEW,
        }

    def problem(self, least: float | None) -> str | None:
        """Why this is less than `min_success` asks for, or None.

        Args:
            least: The share of the edits that must have taken, after their own edit and at the end alike.
        """
        if least is None or self.share >= least:
            return None
        return (
            f"min_success={least:g}: {self.line()}. Both must be at least {least:g} of the edits. The model has been "
            f"restored"
        )
