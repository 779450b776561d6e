"""The task class of `edithurt_glue`: one generation a document, and the likelihood of each label word.

The harness's own requests are all that is used, so every model type can answer. HFLM and `edited_hf` are asked token by
token (`exact_requests`), so that a blank at the prompt's end stays there, as in the published scripts. Any other model
is asked for the word as a text; its tokens are counted by the tokenizer that the run's arguments name, and without one
there is no `f1_new`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_edit.harness import exact_requests, requests
from lm_eval_edit.tasklib.fitted import FittedTask
from lm_eval_edit.tasklib.glue import scoring
from lm_eval_edit.tasklib.glue.catalogue import NEW_TOKENS, TASKS


@dataclass
class AskedWord(Instance):
    """A request for a label word, or for one token of it.

    Attributes:
        label: The word's.
        tokens: How many of its tokens it asks; 0 where that is not known.
    """

    label: int = 0
    tokens: int = 0


def _placed(request: AskedWord, response: Any) -> list[Any]:
    """A response as scoring goes by it."""
    return [request.label, request.tokens, response[0]]


exact_requests.tell_tasks_their_model()


class GlueTask(FittedTask):
    """One of the eight tasks; see the module's description.

    Args:
        config: The task's YAML with the run's metadata.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        spec = TASKS[self.config.dataset_kwargs["edithurt"]]
        self._words, self.shortenable, self.new_tokens = spec.words, spec.shortenable, NEW_TOKENS

    def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """The output, then the label words in the order of their labels."""
        of = requests.origin(self, kwargs)
        wanted = deepcopy(self.config.generation_kwargs)
        asked: list[Instance] = [requests.make(Instance, "generate_until", doc, (ctx, wanted), 0, of)]
        blank = "" if kwargs.get("apply_chat_template") else " "  # as in the harness: an answer begins the turn
        for label, word in enumerate(self._words):
            for tokens, arguments in self._pieces(ctx, blank + word):
                what = {"label": label, "tokens": tokens}
                asked.append(requests.make(AskedWord, "loglikelihood", doc, arguments, len(asked), of, **what))
        return asked

    def _pieces(self, ctx: str, text: str) -> list[tuple[int, tuple[Any, ...]]]:
        """(tokens, arguments) of each request for a label word; all words are cut alike, see `EditingTask`."""
        model = exact_requests.evaluated()
        if model is not None:
            context, count = (len(ids) for ids in exact_requests.tokens_of(model, ctx, text))
            if context and count:
                return [(1, exact_requests.asking(ctx, text, index, count)) for index in range(count)]
        return [(self.counted(ctx, text), (ctx, text))]

    def apply_filters(self) -> None:
        """As in the harness; then a response about a label word is [label, tokens, log-probability]."""
        super().apply_filters()
        for request in self._instances:
            if isinstance(request, AskedWord):
                requests.change_filtered(request, partial(_placed, request))

    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """The document's metrics; none where the samples are all that is wanted (`--predict_only`)."""
        return {} if requests.predicts_only(self) else scoring.row(doc, results)
