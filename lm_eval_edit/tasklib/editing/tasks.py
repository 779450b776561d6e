"""The task class of `edithurt_editing`: what is asked of the model about a document, and in which state of its weights.

The harness's own requests are all that is used, so every model type can answer:

    an object token by token  log-likelihood requests, each a token of the object after the prompt and the tokens
                              before it: whether all are the likeliest, how many, and their summed log-probability
    an answer in words        greedy generation, as many tokens as the known answer has

HFLM and `edited_hf` are asked token by token exactly (`exact_requests`). For any other model type a request is text, so
a token can be asked alone only where the text up to it makes the same tokens as the whole does. That holds between any
two tokens of a byte-pair encoding, except inside a character and after white space; such tokens are asked together with
the next ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lm_eval_edit.edits.states import UNEDITED, in_state
from lm_eval_edit.harness import exact_requests, requests
from lm_eval_edit.settings import AFTER_EACH, EditSettings
from lm_eval_edit.tasklib.arguments import is_edited
from lm_eval_edit.tasklib.editing.documents import Document, in_context
from lm_eval_edit.tasklib.editing.metrics import OTHER, SAID_UNEDITED, SAYS, SCRIPT, TARGET
from lm_eval_edit.tasklib.editing.schedule import settings_of
from lm_eval_edit.tasklib.shorten import budget_of


@dataclass(frozen=True)
class AskedSchedule:
    """The schedule whose facts a task asks about, as the run's arguments and `--metadata` describe it.

    Attributes:
        settings: The options of edits.
        source, sha256: Of the facts there are.
    """

    settings: EditSettings
    source: str
    sha256: str


Question = tuple[str, int, str, tuple[Any, ...], int | None]
"""(role, tokens, request type, arguments, state of its own) of a request."""


def _placed(request: Asked, response: Any) -> list[Any]:
    """A response as scoring goes by it."""
    return [request.role, request.tokens, response]


@dataclass
class Asked(Instance):
    """A request that knows what it asks.

    Attributes:
        role: One of `editing_metrics.ROLES`; `counterfact` puts the kind of prompt and its number before it.
        tokens: How many tokens of the object it holds, or are generated; 0 where that is not known.
        schedule: What its document is taken from.
    """

    role: str = ""
    tokens: int = 0
    schedule: AskedSchedule | None = None


def pieces(tokenizer: Any, context: str, target: str) -> list[tuple[str, int]]:
    """An object cut into single tokens as far as text can ask for them: (text, number of tokens).

    Args:
        tokenizer: A transformers tokenizer; with None the object is one piece of 0 (unknown) tokens.
        context: The prompt.
        target: The object that continues it.
    """
    if tokenizer is None:
        return [(target, 0)]
    whole = context + target
    # As the harness does it: white space at the end of the context counts as the continuation's.
    starts = [len(context.rstrip()), *range(len(context) + 1, len(whole) + 1)]
    ids = tokenizer([whole[:end] for end in starts], add_special_tokens=False)["input_ids"]
    full, last = ids[-1], len(ids[0])
    found, begin = [], len(context)
    for end, prefix in zip(starts[1:], ids[1:], strict=True):
        cut = end == len(whole) or (full[: len(prefix)] == prefix and not whole[end - 1].isspace())
        if cut and len(prefix) > last:
            found.append((whole[begin:end], len(prefix) - last))
            begin, last = end, len(prefix)
    return found or [(target, 0)]


def _one_by_one(role: str, prompt: str, text: str, count: int, alone: bool = False) -> list[Question]:
    """A request for each of an object's tokens."""
    arguments = (exact_requests.asking(prompt, text, index, count, alone) for index in range(count))
    return [(role, 1, "loglikelihood", each, None) for each in arguments]


exact_requests.tell_tasks_their_model()


class EditingTask(ConfigurableTask):
    """A task of `edithurt_editing`; see the module's description.

    Args:
        config: The task's YAML with the run's metadata.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})
        docs = requests.documents(self)  # before the metadata, into which reading them writes
        metadata = self.config.metadata
        self._edited = is_edited(metadata)
        self._settings = settings_of(metadata)
        known = metadata["provenance"]  # filled in with the documents
        self._schedule = AskedSchedule(self._settings, known["source"], known["sha256"])
        budget = budget_of(metadata, 0)
        self._tokenizer = None if budget is None else budget.tokenizer
        self._absent = self._absent_metrics(docs)

    def _absent_metrics(self, docs: Sequence[Document]) -> set[str]:
        """Metrics that no document can have: they are not reported, rather than reported as something."""
        names = set()
        if self._tokenizer is None:
            names |= {"token_acc", "unchanged", *SCRIPT}
        if "editor" not in self.config.metadata:  # who knows what this model's unedited self is
            names.add("unchanged")
        if all(doc["other"] is None for doc in docs):
            names.add("prob_success")
        return names | {f"{name}_stderr" for name in names}

    # ------------------------------------------------------------------------------------------------------- requests

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """The document's requests, each in the state of the weights that the run's `edit_when` wants."""
        of = requests.origin(self, kwargs)
        state = self._state(doc)
        asked: list[Asked] = []
        continued = {
            role: in_context(doc, role, ctx, bool(kwargs.get("apply_chat_template")))
            for role in (TARGET, OTHER)
            if doc[role] is not None
        }
        for role, tokens, kind, arguments, own_state in self._questions(doc | continued, ctx):
            at = state if own_state is None else own_state
            arguments = arguments if at is None else in_state(arguments, at)
            what = {"role": role, "tokens": tokens, "schedule": self._schedule}
            asked.append(requests.make(Asked, kind, doc, arguments, len(asked), of, **what))
        return asked

    def _state(self, doc: Document) -> int | None:
        """After how many operations the document is asked; None: as the weights stand."""
        if not self._edited or self._settings.edit_when != AFTER_EACH:
            return None
        return doc["edit"] // self._settings.edit_batch_size + 1

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        """(role, tokens, request type, arguments, state of its own) of each request."""
        questions = self._pieces(TARGET, ctx, doc["target"])
        return questions if doc["other"] is None else questions + self._pieces(OTHER, ctx, doc["other"])

    def _pieces(self, role: str, ctx: str, text: str) -> list[Question]:
        """Requests for a text after a context, all objects cut alike.

        HFLM answers requests with the same tokens before the last one by one forward pass, and takes the
        log-probability of the shorter from the wrong position if one is a token and the other several. Two objects that
        begin alike would be such a pair if only one of them were cut.
        """
        model = exact_requests.evaluated()
        if model is not None:
            context, count = (len(ids) for ids in exact_requests.tokens_of(model, ctx, text))
            if context and count:
                return _one_by_one(role, ctx, text, count)
        asked: list[Question] = []
        before = ctx
        for piece, tokens in pieces(self._tokenizer, ctx, text):
            asked.append((role, tokens, "loglikelihood", (before, piece), None))
            before += piece
        return asked

    def _published(self, role: str, prompt: str, text: str, ours: str) -> list[Question]:
        """Requests for an object as the MEMIT repository's scripts take it: one space after the prompt, in the tokens
        that it has alone.

        Args:
            text: The object, with that space.
            ours: The object as it has been asked already. Where both are the same tokens in the same place, nothing
                more is asked.
        """
        model = exact_requests.evaluated()
        if model is None:
            return [] if text == ours else self._pieces(role, prompt, text)
        contexts, ids = exact_requests.tokens_alone(model, prompt, text)
        if exact_requests.asked_together(model, prompt, ours) == (contexts, ids):
            return []
        return _one_by_one(role, prompt, text, len(ids), alone=True)

    # -------------------------------------------------------------------------------------------------------- answers

    def apply_filters(self) -> None:
        """As in the harness; then every response becomes [role, tokens, response], which scoring goes by."""
        super().apply_filters()
        for request in self._instances:
            requests.change_filtered(request, partial(_placed, request))

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """The document's metrics, without those that no document of this run can have."""
        if requests.predicts_only(self):  # --predict_only: the samples are all that is wanted
            return {}
        values = super().process_results(doc, results)
        return {name: value for name, value in values.items() if name not in self._absent}


class LocalityTask(EditingTask):
    """`edithurt_locality`: the known answer, and what is said in words, by the edited and by the unedited model."""

    def _questions(self, doc: Document, ctx: str) -> list[Question]:
        questions = super()._questions(doc, ctx)
        if "unchanged" not in self._absent:
            tokens = sum(each[1] for each in questions if each[0] == TARGET)
            wanted = {"until": [], "do_sample": False, "max_gen_toks": tokens}
            questions.append((SAYS, tokens, "generate_until", (ctx, wanted), None))
            if self._edited:
                questions.append((SAID_UNEDITED, tokens, "generate_until", (ctx, wanted), UNEDITED))
        return questions
