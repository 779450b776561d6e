"""The tasks that ask several prompts of a fact in one document, as the released scripts of the field do.

`edithurt_counterfact` asks both objects after each prompt: by our rule for what stands between prompt and object, and,
where that makes other tokens, as the MEMIT repository does (experiments/py/eval_utils_counterfact.py): prompt, space
and object as one text, the object's tokens those of " object" alone, each asked behind as many tokens of the whole as
the prompt alone has, whatever they are. `edithurt_zsre` asks as its eval_utils_zsre.py: each token of the right object
after the prompt and the object's tokens before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.editing.documents import Document, in_context
from lm_eval_edit.tasklib.editing.metrics import NEIGHBOURHOOD, OTHER, PUBLISHED, TARGET, ZSRE, prompts_of
from lm_eval_edit.tasklib.editing.tasks import EditingTask, Question


def refuse_what_is_around(task: EditingTask, doc: Document, ctx: str) -> None:
    """Refuse what the harness puts around a document's first prompt, and would not put around its others.

    Raises:
        UserError: it did.
    """
    if ctx != doc["prompt"]:
        raise UserError(
            f"{task.config.task} asks several prompts of a fact, and the harness puts a chat template, a system "
            "instruction or examples around the first alone: leave them out, or ask for edithurt_editing, whose "
            "documents have one prompt each"
        )


class SeveralPromptsTask(EditingTask):
    """A task whose documents have several prompts, of which nothing stands around one alone."""

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        refuse_what_is_around(self, doc, ctx)
        return [
            question
            for kind, prompts in prompts_of(doc)
            for number, prompt in enumerate(prompts)
            for question in self._after(doc, kind, number, prompt)
        ]

    def _after(self, doc: Document, kind: str, number: int, prompt: str) -> list[Question]:
        """What is asked after one of the prompts."""
        raise NotImplementedError


class CounterFactTask(SeveralPromptsTask):
    """`edithurt_counterfact`: the two objects after each prompt of a fact."""

    def _after(self, doc: Document, kind: str, number: int, prompt: str) -> list[Question]:
        questions = []
        for role in (TARGET, OTHER):
            ours, name = in_context(doc, role, prompt), f"{kind} {number} {role}"
            questions += self._pieces(name, prompt, ours)
            questions += self._published(f"{PUBLISHED} {name}", prompt, doc[f"{role}_script"], ours)
        return questions


class ZsreTask(SeveralPromptsTask):
    """`edithurt_zsre`: the new object after the fact's prompts, a probe's answer after the probe."""

    def _after(self, doc: Document, kind: str, number: int, prompt: str) -> list[Question]:
        text = doc["answers"][number] if kind == NEIGHBOURHOOD else doc["target"]
        return self._published(f"{kind} {number} {TARGET}", prompt, text, None)

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        names = super()._absent_metrics(docs)
        if self._tokenizer is None:
            names |= {f"{name}{end}" for name in ("score", *ZSRE) for end in ("", "_stderr")}
        return names
