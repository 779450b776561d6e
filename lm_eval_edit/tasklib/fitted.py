"""Tasks whose prompts fit the model together with what a run puts around them.

Prompts are made to fit when the documents are loaded (`shorten`), and once more when the requests are built, if the run
has a chat template or a system instruction around them, or wants more tokens than the task itself: only then is that
known. Without it the harness would cut the start off a prompt, and the template's with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_edit.harness import requests
from lm_eval_edit.tasklib.shorten import budget_of, shorten


class FittedTask(ConfigurableTask):
    """A task of the harness that shortens its documents as far as a run asks.

    Args:
        config: The task's YAML with the run's metadata.

    Attributes:
        shortenable: Document fields that may lose their end, in the order in which they are cut; none: nothing is done.
        new_tokens: What the documents were made to leave room for when they were loaded.
    """

    shortenable: tuple[str, ...] = ()
    new_tokens: int = 0

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._whole: list[dict[str, Any]] | None = None

    @cached_property
    def named_tokenizer(self) -> Any:
        """The tokenizer that the run's arguments name, loaded when first asked for; None where they name none."""
        budget = budget_of(self.config.metadata, 0)
        return None if budget is None else budget.tokenizer

    def counted(self, context: str, text: str) -> int:
        """How many tokens of the named tokenizer a text has behind a context; 0 without one.

        As the harness does it, white space at the end of the context counts as the text's.
        """
        if self.named_tokenizer is None:
            return 0
        before, whole = self.named_tokenizer([context.rstrip(), context + text], add_special_tokens=False)["input_ids"]
        return max(1, len(whole) - len(before))

    def prompted(self, doc: Mapping[str, Any]) -> dict[str, Any]:
        """The document with whatever in it is made of the fields that may be shortened."""
        return dict(doc)

    def behind(self, doc: Mapping[str, Any], in_chat: bool) -> str:
        """What the model reads behind the prompt."""
        return ""

    def build_all_requests(self, **how: Any) -> None:
        """As in the harness, with prompts that fit the model together with what the run puts around them."""
        self._fit(how)
        super().build_all_requests(**how)

    def _fit(self, how: Mapping[str, Any]) -> None:
        """Shorten the documents as far as a run's chat template, system instruction and number of new tokens ask."""
        if not self.shortenable:
            return
        new_tokens = int((self.config.generation_kwargs or {}).get("max_gen_toks") or self.new_tokens)
        around = bool(how.get("apply_chat_template") or how.get("system_instruction"))
        if not around and new_tokens <= self.new_tokens:
            if self._whole is not None:  # requests of another kind were built before
                requests.replace_documents(self, self._whole)
            return
        budget = budget_of(self.config.metadata, new_tokens)
        if budget is None or budget.limit <= 0:
            return
        if self._whole is None:
            self._whole = [dict(doc) for doc in requests.documents(self)]
        docs = [dict(doc) for doc in self._whole]
        kept = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "chat_template")
        options = {name: how[name] for name in kept if name in how}

        def asked(doc: dict[str, Any]) -> str:
            context = self.fewshot_context(self.prompted(doc), num_fewshot=0, gen_prefix=None, **options)
            return context + self.behind(doc, bool(how.get("apply_chat_template")))

        shorten(docs, asked, self.shortenable, budget)
        requests.replace_documents(self, [self.prompted(doc) for doc in docs])
        provenance = self.config.metadata.get("provenance")
        if isinstance(provenance, dict):
            counts = {name: sum(doc[name] for doc in docs) for name in ("shortened", "overlong")}
            provenance.update(prompt_budget=budget.limit, **counts)
