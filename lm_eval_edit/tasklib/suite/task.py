"""The task class of `edithurt_suite`: outputs are scored with what is known of their end.

`edited_hf` hands on outputs that know how they ended (`outputs.Output`). Of any other model type the harness gives the
text alone; then the tokens are counted, where the run's arguments name a tokenizer. How it was known is in the results,
`configs.<task>.metadata.provenance.ended_known`, and the metric `ended` is in the samples.

Prompts are made to fit the model when the documents are loaded (`shorten`), and once more when the requests are built,
if the run has a chat template or a system instruction around them, or wants more tokens than the task itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lm_eval_edit.harness import requests
from lm_eval_edit.harness.outputs import Output, by_count
from lm_eval_edit.tasklib.arguments import is_edited
from lm_eval_edit.tasklib.shorten import budget_of, shorten
from lm_eval_edit.tasklib.suite.catalogue import TASKS


class SuiteTask(ConfigurableTask):
    """One of the eight tasks; see the module's description.

    Args:
        config: The task's YAML with the run's metadata.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        self._tokenizer: Any = None
        self._looked = False
        self._whole: list[dict[str, Any]] | None = None

    def build_all_requests(self, **how: Any) -> None:
        """As in the harness, with prompts that fit the model together with what the run puts around them."""
        self._fit(how)
        super().build_all_requests(**how)

    def _fit(self, how: Mapping[str, Any]) -> None:
        """Shorten the documents as far as a run's chat template, system instruction and number of new tokens ask."""
        spec = TASKS.get((self.config.dataset_kwargs or {}).get("edithurt", ""))
        if spec is None:
            return
        new_tokens = int((self.config.generation_kwargs or {}).get("max_gen_toks") or spec.new_tokens)
        around = bool(how.get("apply_chat_template") or how.get("system_instruction"))
        if not around and new_tokens <= spec.new_tokens:
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
        asked = partial(self.fewshot_context, num_fewshot=0, gen_prefix=None, **options)
        shorten(docs, asked, spec.shortenable, budget)
        requests.replace_documents(self, docs)
        provenance = self.config.metadata.get("provenance")
        if isinstance(provenance, dict):
            counts = {name: sum(doc[name] for doc in docs) for name in ("shortened", "overlong")}
            provenance.update(prompt_budget=budget.limit, **counts)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """The document's metrics, and `ended` (1 or 0) where it is known whether the model ended its output."""
        output = results[0] if isinstance(results[0], Output) else self._plain(results[0])
        self._note(output.known)
        row = super().process_results(doc, [output])
        return row if output.ended is None else row | {"ended": float(output.ended)}

    def _plain(self, text: str) -> Output:
        if not self._looked:  # once, and only where it is needed: it may have to be loaded
            budget = budget_of(self.config.metadata, 0)
            self._tokenizer, self._looked = budget and budget.tokenizer, True
        asked = self.config.generation_kwargs  # with what --gen_kwargs changed
        return by_count(
            text,
            self._tokenizer,
            None if asked.get("until") else asked.get("max_gen_toks"),
            is_edited(self.config.metadata) and str(self.config.metadata.get("n_edits")) != "0",
        )

    def _note(self, known: str) -> None:
        """Into the dictionary that the harness dumps with the task's configuration after the run."""
        provenance = self.config.metadata.get("provenance")
        if isinstance(provenance, dict):
            said = {*str(provenance.get("ended_known", known)).split(", "), known}
            provenance["ended_known"] = ", ".join(sorted(said))
