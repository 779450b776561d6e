"""Which experts an operation's prompts go to, before it and after: an edit may move what the router sees."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval_edit.editors._shared.routing import Picked, prompt_routing, record
from lm_eval_edit.editors.base import EditContext, Editor
from lm_eval_edit.facts.fact import Fact

logger = logging.getLogger("lm_eval_edit")

_NAMED = 5  # facts named one by one


class Routing:
    """The experts picked for an operation's prompts as the model stands when this is made.

    Routers below the lowest edited layer see what they saw, and are not looked at. A model without mixtures is not run.

    Args:
        context: The model and its parts.
        editor: What edits it.
        facts: The operation's, where they are edited.
    """

    def __init__(self, context: EditContext, editor: Editor, facts: Sequence[Fact]):
        self._context, self._facts, self._edited = context, facts, editor.layers()
        lowest, mixtures = min(self._edited, default=0), context.architecture.mixtures
        self._layers = [layer for layer, m in enumerate(mixtures) if m is not None and layer >= lowest]
        self._before = self._picked()

    def _picked(self) -> dict[int, Picked]:
        c = self._context
        return prompt_routing(c.model, c.tokenizer, c.architecture, self._facts, self._layers)

    def details(self) -> dict[str, Any]:
        """What the ledger says of it, with the model as it stands now; nothing of a model without mixtures."""
        return {"routing": record(self._before, self._picked(), self._facts, self._edited)} if self._layers else {}


def tell_changed(details: Iterable[Mapping[str, Any]]) -> None:
    """Warn of the facts whose own edit has changed which experts are picked for them, all operations together.

    Args:
        details: Of some operations, as the ledger has them.
    """
    changed: dict[str, list[Any]] = {}
    for each in details:
        for layer, ids in each.get("routing", {}).get("changed", {}).items():
            changed.setdefault(layer, []).extend(ids)
    for layer, ids in sorted(changed.items(), key=lambda entry: int(entry[0])):
        named = ", ".join(map(str, ids[:_NAMED])) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
        logger.warning(
            "their own edits change which experts the router of layer %s picks for the subjects of %d fact%s (%s): "
            "experts that the edit did not reckon with take part there now",
            layer, len(ids), "s" * (len(ids) > 1), named,
        )  # fmt: skip
