"""The task classes of `edithurt_probing`: what is asked of the model about a document.

A document may have several prompts, and the harness puts what the run wants around one (a system instruction, a chat
template): the others get the very same around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.separators import continuing
from lm_eval_edit.harness import requests
from lm_eval_edit.tasklib.editing.documents import Document
from lm_eval_edit.tasklib.editing.metrics import OTHER, SAYS, TARGET
from lm_eval_edit.tasklib.editing.probing import chat, said
from lm_eval_edit.tasklib.editing.probing_metrics import OF_OLD, PLAIN, check_role
from lm_eval_edit.tasklib.editing.tasks import EditingTask, Question

_WORDS_AFTER_NEGATION = 12  # tokens of the answer to a negated prompt that samples show


class Around:
    """What the harness put around a document's prompt.

    Args:
        ctx: The prompt with it: a text, or the turns of a chat that the model renders itself, the last with the prompt.

    Attributes:
        before, after: What stands on both sides of it. Something behind is a chat template's beginning of the answer.

    Raises:
        UserError: the prompt is not in the text.
    """

    def __init__(self, prompt: str, ctx: Any):
        self._ctx, self._turns = ctx, requests.turns_of(ctx)
        text = ctx if self._turns is None else self._turns[-1]["content"]
        self.before, found, self.after = text.rpartition(prompt)
        if not found:
            # A chat template may drop the white space at a message's ends.
            self.before, found, self.after = text.rpartition(prompt.strip())
        if not found:
            raise UserError(
                f"the prompt {prompt[:60]!r} is not in what the harness asks ({text[:60]!r}): a task that asks several "
                f"prompts of a fact cannot put the same around the others"
            )

    def prompt(self, text: str) -> Any:
        """Another prompt with the same around it."""
        asked = f"{self.before}{text}{self.after}"
        if self._turns is None:
            return asked
        return requests.with_turns(self._ctx, [*self._turns[:-1], self._turns[-1] | {"content": asked}])

    def object(self, joined: str) -> str:
        """An object as it continues a prompt with this around it, from how it continues the prompt alone."""
        return joined.lstrip() if self.after or self._turns is not None else joined


class NegationTask(EditingTask):
    """`edithurt_negation`: o* and o after the negated prompt and after the prompt itself, and the words said."""

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        if any(doc["other"] is not None for doc in docs):
            return set()
        return {name for metric in OF_OLD for name in (metric, f"{metric}_stderr")}

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        around = Around(doc["prompt"], ctx)
        questions = super()._questions(doc, ctx)
        plain = around.prompt(doc["plain"])
        for role in (TARGET, OTHER):
            joined = doc[f"plain_{role}"]
            if joined is not None:
                questions += self._pieces(f"{PLAIN} {role}", plain, around.object(joined))
        wanted = {"until": ["\n"], "do_sample": False, "max_gen_toks": _WORDS_AFTER_NEGATION}
        return [*questions, (SAYS, _WORDS_AFTER_NEGATION, "generate_until", (ctx, wanted), None)]


class FactCheckTask(EditingTask):
    """`edithurt_factcheck`: both options after each of a fact's eight questions."""

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        return set()

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        around = Around(doc["prompt"], ctx)
        return [
            question
            for check in doc["checks"]
            for which, option in ((TARGET, check["right"]), (OTHER, check["wrong"]))
            for question in self._pieces(
                check_role(check, which),
                around.prompt(check["prompt"]),
                around.object(continuing(check["prompt"], option)),
            )
        ]


class WildTask(EditingTask):
    """`edithurt_wild` and `edithurt_reversed`: free generation up to the answer's end."""

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        return set() if any(doc["old"] for doc in docs) else {"old", "old_stderr"}

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        wanted = dict(self.config.generation_kwargs)
        until = wanted.get("until") or []
        wanted["until"] = said.stops_for([until] if isinstance(until, str) else until, doc["answers"] + doc["old"])
        return [(SAYS, int(wanted.get("max_gen_toks", 0)), "generate_until", (ctx, wanted), None)]


class WildChatTask(WildTask):
    """`edithurt_wild_chat`: the question inside the model's chat template, which the task puts there itself."""

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """As of the class above; with --apply_chat_template the template is there already."""
        if not kwargs.get("apply_chat_template"):
            ctx, kwargs = chat.inside(ctx), kwargs | {"apply_chat_template": True}
        return super().construct_requests(doc, ctx, **kwargs)
