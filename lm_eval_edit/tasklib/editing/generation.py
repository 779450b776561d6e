"""`edithurt_counterfact_generation`: what the model writes about the edited subjects, sampled.

One text for each generation prompt of a fact, as ROME's and MEMIT's released code has it: top-k sampling with k = 5, up
to 100 tokens with the prompt, going on behind an end of text. The seed of a text is made of `sampling_seed`, the fact
and the prompt's place, so texts depend on nothing else of a run (`harness.sampled`; other model types get the seed and
keep to it as they can).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.harness import exact_requests, requests
from lm_eval_edit.tasklib.editing import texts
from lm_eval_edit.tasklib.editing.documents import Document
from lm_eval_edit.tasklib.editing.generation_inputs import TASK, inputs, no_room, problems
from lm_eval_edit.tasklib.editing.metrics import SAYS, with_errors
from lm_eval_edit.tasklib.editing.published import refuse_what_is_around
from lm_eval_edit.tasklib.editing.tasks import EditingTask, Question

logger = logging.getLogger("lm_eval_edit")

TOP_K = 5


class GenerationTask(EditingTask):
    """The task; its metrics are `fluency`, also as `score`, and `consistency` where there are reference texts."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        metadata, docs = self.config.metadata, requests.documents(self)
        if found := problems(metadata, self._schedule.source, docs):
            raise ConfigurationError(found)
        self._inputs = inputs(metadata, self._schedule.source)
        self._words = texts.word_tokenizer(self._inputs.word_tokenizer)
        if self._inputs.snippets is None:
            self._absent |= {"consistency", "consistency_stderr"}
            logger.warning("%s: no reference texts (snippets=FILE), so consistency is not measured", TASK)
        elif without := sum(self._reference(doc) is None for doc in docs):
            logger.warning(
                "%s: consistency leaves out %d of %d facts, without reference texts", TASK, without, len(docs)
            )
        metadata["provenance"] |= self._inputs.record()

    def _reference(self, doc: Document) -> str | None:
        snippets = self._inputs.snippets
        return None if snippets is None else snippets.joined(doc["relation"], doc["object"])

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        refuse_what_is_around(self, doc, ctx)
        return [self._sampled(doc, number, prompt) for number, prompt in enumerate(doc["prompts"])]

    def _sampled(self, doc: Document, number: int, prompt: str) -> Question:
        model, most = exact_requests.evaluated(), self._inputs.text_tokens
        if model is not None:
            count = len(model.tok_encode(prompt))
        elif self._tokenizer is not None:
            count = len(self._tokenizer(prompt)["input_ids"])
        else:
            raise UserError(
                f"{TASK}: how many tokens a prompt has is not known for this model: name its tokenizer, "
                f"tokenizer=... in --model_args or --metadata"
            )
        if found := no_room(prompt, doc["fact_id"], count, most):
            raise UserError(found)
        how = {
            "until": [],
            "do_sample": True,
            "temperature": 1.0,
            "top_k": TOP_K,
            "max_gen_toks": most - count,
            "seed": _seed(self._inputs.sampling_seed, doc["fact_id"], number, prompt),
        }
        if model is not None:
            how["ignore_eos"] = True
        return f"{number} {SAYS}", most - count, "generate_until", (prompt, how), None

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """The document's metrics."""
        if requests.predicts_only(self):
            return {}
        written = [
            texts.as_published(prompt + said) for prompt, (_, _, said) in zip(doc["prompts"], results, strict=True)
        ]
        fluency, consistency = texts.fluency(written, self._words), None
        snippets, reference = self._inputs.snippets, self._reference(doc)
        if snippets is not None and reference is not None:
            consistency = texts.consistency(written, reference, snippets.vectorizer)
        values = with_errors(doc["fact_id"], score=fluency, fluency=fluency, consistency=consistency)
        return {name: value for name, value in values.items() if name not in self._absent}


def _seed(seed: int, fact: str, number: int, prompt: str) -> int:
    """The seed of one text, the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, (seed, fact, number, prompt))).encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:4], "big")
