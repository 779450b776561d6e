"""The tasks that ask several prompts of a fact in one document, as the released scripts of the field do.

`edithurt_counterfact` asks both objects after each prompt: by our rule for what stands between prompt and object, and,
where that makes other tokens, as the MEMIT repository does (experiments/py/eval_utils_counterfact.py): prompt, space
and object as one text, the object's tokens those of " object" alone, each asked behind as many tokens of the whole as
the prompt alone has, whatever they are. `edithurt_zsre` asks as its eval_utils_zsre.py: each token of the right object
after the prompt, one space, and the object's tokens before it. That script cuts the object alone, and reads what it
decodes of it again: where that makes other tokens than the text has (SentencePiece), its figures are of no model's
knowledge, and the tokens of the text are asked here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.editing import bare
from lm_eval_edit.tasklib.editing.documents import Document, in_context
from lm_eval_edit.tasklib.editing.metrics import NEIGHBOURHOOD, OTHER, PUBLISHED, TARGET, ZSRE, prompts_of
from lm_eval_edit.tasklib.editing.tasks import EditingTask, Question


def refuse_what_is_around(task: EditingTask, doc: Document, ctx: str) -> None:
    """Refuse what the harness puts around a document's prompt.

    Raises:
        UserError: it did.
    """
    if ctx != doc["prompt"]:
        raise UserError(bare.why_not(task.config.task))


class SeveralPromptsTask(EditingTask):
    """A task whose documents have several prompts.

    The harness makes one context a document; what it puts around the first prompt (a chat template, a system
    instruction) is put around the others by the same function.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self._around: dict[str, Callable[[str], str]] = {}
        self._in_chat = False

    def fewshot_context(self, doc: Document, *args: Any, **kwargs: Any) -> str:
        """As in the harness; how it was made is kept for the document's other prompts."""

        def around(prompt: str) -> str:
            made: str = super(SeveralPromptsTask, self).fewshot_context({**doc, "prompt": prompt}, *args, **kwargs)
            return made

        self._around[doc["prompt"]] = around
        return around(doc["prompt"])

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """As for the other tasks."""
        self._in_chat = bool(kwargs.get("apply_chat_template"))
        return super().construct_requests(doc, ctx, **kwargs)

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        around = self._around.get(doc["prompt"], str)
        return [
            question
            for kind, prompts in prompts_of(doc)
            for number, context in enumerate(map(around, prompts))
            for question in self._after(doc, kind, number, context)
        ]

    @abstractmethod
    def _after(self, doc: Document, kind: str, number: int, prompt: str) -> list[Question]:
        """What is asked after one of the prompts."""


class CounterFactTask(SeveralPromptsTask):
    """`edithurt_counterfact`: the two objects after each prompt of a fact."""

    def _after(self, doc: Document, kind: str, number: int, prompt: str) -> list[Question]:
        questions = []
        for role in (TARGET, OTHER):
            ours, name = in_context(doc, role, prompt, self._in_chat), f"{kind} {number} {role}"
            questions += self._pieces(name, prompt, ours)
            if not self._in_chat:  # which no published script knows: the figures are then of the tokens asked
                questions += self._published(f"{PUBLISHED} {name}", prompt, doc[f"{role}_script"], ours)
        return questions


class ZsreTask(SeveralPromptsTask):
    """`edithurt_zsre`: the new object after the fact's prompts, a probe's answer after the probe; nothing around."""

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        refuse_what_is_around(self, doc, ctx)
        return super()._questions(doc, ctx)

    def _after(self, doc: Document, kind: str, number: int, prompt: str) -> list[Question]:
        text = doc["answers"][number] if kind == NEIGHBOURHOOD else doc["target"]
        return self._pieces(f"{kind} {number} {TARGET}", prompt, text)

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        names = super()._absent_metrics(docs)
        if self._tokenizer is None:
            names |= {f"{name}{end}" for name in ("score", *ZSRE) for end in ("", "_stderr")}
        return names
