"""The task class of `edithurt_portability`: every question of an item is answered freely, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from lm_eval_edit.facts.portability import KINDS
from lm_eval_edit.tasklib.editing.documents import Document
from lm_eval_edit.tasklib.editing.metrics import SAYS
from lm_eval_edit.tasklib.editing.portability_metrics import wanted, wants_several
from lm_eval_edit.tasklib.editing.probing import said
from lm_eval_edit.tasklib.editing.probing_tasks import Around
from lm_eval_edit.tasklib.editing.tasks import EditingTask, Question


class PortabilityTask(EditingTask):
    """`edithurt_portability`; what the harness puts around an item's first question stands around the others too."""

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        absent = set(KINDS) - {doc["kind"] for doc in docs} | ({"em"} if all(map(wants_several, docs)) else set())
        return absent | {f"{metric}_stderr" for metric in absent}

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        around = Around(doc["prompt"], ctx)
        asked: list[Question] = []
        for prompt, every in zip(doc["prompts"], wanted(doc), strict=True):
            how = dict(self.config.generation_kwargs)
            until = how.get("until") or []
            how["until"] = said.stops_for([until] if isinstance(until, str) else until, list(chain(*every)))
            tokens = int(how.get("max_gen_toks", 0))
            asked.append((SAYS, tokens, "generate_until", (around.prompt(prompt), how), None))
        return asked
