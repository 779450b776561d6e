"""The suite's abilities asked by likelihood: `edithurt_suite_mc`, for models too small for the suite's free generation.

    rte, boolq, sst2       the suite's prompt, and the task's two words behind it
    mutual                 the dialogue, and each of the four continuations as the next utterance
    nq, gsm8k, samsum      the suite's prompt, and the gold answer (NQ's first) or the reference summary behind it

Named entities are left out: many of their gold answers are empty, and the form of the others is ours, not the data's.

A model that cannot say an answer still gives it a probability. `gold_logprob` is the log-probability of the gold answer
per token, a quantity and no share: it has no lower end. It moves long before an accuracy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance

from lm_eval_edit.errors import UserError
from lm_eval_edit.harness import exact_requests, requests
from lm_eval_edit.tasklib.fitted import FittedTask
from lm_eval_edit.tasklib.records.fields import each
from lm_eval_edit.tasklib.suite import prompts, sources
from lm_eval_edit.tasklib.suite.catalogue import TASKS

Document = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """How a task is asked by likelihood.

    Attributes:
        prompt: What stands before the answers.
        answers: Those that the model is asked about, without the separator before them.
        gold: Which of them is right.
    """

    prompt: Callable[[Document], str]
    answers: Callable[[Document], Sequence[str]]
    gold: Callable[[Document], int]

    def longest(self, doc: Document) -> str:
        """The longest text that the model is asked about; what a prompt is shortened by."""
        return f"{self.prompt(doc)} {max(self.answers(doc), key=len)}"


def _words(prompt: Callable[[Document], str], target: Callable[[Document], str], *words: str) -> Question:
    return Question(prompt, lambda doc: words, lambda doc: words.index(target(doc)))


def _only(prompt: Callable[[Document], str], answer: Callable[[Document], str]) -> Question:
    return Question(prompt, lambda doc: [answer(doc)], lambda doc: 0)


def _nq(doc: Document) -> str:
    """The suite's prompt; one with a passage ends with the question, so that an answer needs a mark before it."""
    prompt = prompts.nq(doc)
    return prompt if doc["passage"] is None else f"{prompt} Answer:"


QUESTIONS: dict[str, Question] = {
    "rte": _words(prompts.rte, prompts.rte_target, "True", "False"),
    "boolq": _words(prompts.boolq, prompts.boolq_target, "yes", "no"),
    "sst2": _words(prompts.sst2, prompts.sst2_target, "positive", "negative"),
    "mutual": Question(lambda doc: doc["article"], lambda doc: doc["options"], lambda doc: "ABCD".index(doc["answer"])),
    "nq": _only(_nq, lambda doc: doc["answers"][0]),
    "gsm8k": _only(prompts.gsm8k, prompts.gsm8k_target),
    "samsum": _only(prompts.samsum, prompts.samsum_target),
}


def dataset(edithurt: str, provenance: Any = None, **metadata: Any) -> dict[str, Any]:
    """`custom_dataset` of the task YAMLs: the suite's documents with `prompt`, `choices` and `gold`.

    Args:
        edithurt, provenance, metadata: As for `sources.dataset`.

    Raises:
        UserError: as `sources.load`; or a document whose gold answer is empty.
    """
    import datasets

    question = QUESTIONS[edithurt]

    def whole(doc: Document) -> str:
        return question.longest(doc)

    whole.__name__ = f"{edithurt} (by likelihood)"
    docs, known = sources.load(edithurt, metadata, whole, 0)
    check_answers(
        edithurt, [f"{edithurt}: document {number} of {known['source']}" for number in range(len(docs))], docs
    )
    for doc in docs:
        doc |= {"prompt": question.prompt(doc), "choices": list(question.answers(doc)), "gold": question.gold(doc)}
    if isinstance(provenance, dict):
        provenance.update(known)
    return {"test": datasets.Dataset.from_list(docs)}


def check_answers(task: str, places: Sequence[str], docs: Sequence[Document]) -> None:
    """Check that there is something to ask the likelihood of.

    Args:
        task: A task of `QUESTIONS`.
        places: Of the documents, for messages.
        docs: As `documents.build` has them.

    Raises:
        UserError: documents with an empty answer; each is named.
    """

    def read(place: str, doc: Document) -> None:
        if not all(answer.strip() for answer in QUESTIONS[task].answers(doc)):
            raise UserError(f"{place} has an empty answer, which no model says")

    each(zip(places, docs, strict=True), read)


# ------------------------------------------------------------------------------------------------------------- scoring


class Response(tuple):
    """(log-likelihood, whether it is the greedy continuation) of an answer that has `tokens` tokens."""

    tokens: int

    def __new__(cls, given: Sequence[Any], tokens: int = 0) -> Response:
        made = super().__new__(cls, given)
        made.tokens = tokens
        return made

    @property
    def per_token(self) -> float:
        """Mean log-probability of the answer's tokens."""
        return float(self[0]) / self.tokens


def of_choices(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`process_results` of tasks with several answers; `score` is the plain accuracy."""
    return _chosen(doc, results, "acc")


def of_texts(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """The same where the answers are texts of different lengths; `score` is the length-normalised accuracy."""
    return _chosen(doc, results, "acc_norm")


def _chosen(doc: Document, results: Sequence[Response], headline: str) -> dict[str, Any]:
    sums = np.array([response[0] for response in results], dtype=float)
    lengths = np.array([len(choice) for choice in doc["choices"]])  # the harness's acc_norm: by characters
    right = {"acc": _is_likeliest(sums, doc["gold"]), "acc_norm": _is_likeliest(sums / lengths, doc["gold"])}
    return {"score": right[headline], **right, **_common(doc, results)}


def _is_likeliest(values: np.ndarray, gold: int) -> float:
    """1 where the gold answer is the (first) likeliest; 0 too of figures that are no numbers, which choose nothing."""
    return float(not np.isnan(values).any() and int(values.argmax()) == gold)


def of_answer(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """`process_results` of tasks with one answer.

    `score` is the geometric mean of the probabilities of its tokens, exp(gold_logprob), from 0 to 1, and 0 of a figure
    that is no number; `em` is 1 where each of its tokens is the likeliest.
    """
    (gold,) = results
    return {
        "score": 0.0 if math.isnan(gold.per_token) else math.exp(gold.per_token),
        "em": float(gold[1]),
        **_common(doc, results),
    }


def _common(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    return {"gold_logprob": results[doc["gold"]].per_token, "shortened": int(doc["shortened"])}


# ------------------------------------------------------------------------------------------------------- the task class


exact_requests.tell_tasks_their_model()


class LikelihoodTask(FittedTask):
    """A task of `edithurt_suite_mc`: the harness's multiple choice, with the number of tokens of each answer.

    Args:
        config: The task's YAML with the run's metadata.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        task = self.config.dataset_kwargs["edithurt"]
        self.shortenable, self._question = TASKS[task].shortenable, QUESTIONS[task]

    def prompted(self, doc: Mapping[str, Any]) -> Document:
        """The document with the prompt that its texts make now."""
        return {**doc, "prompt": self._question.prompt(dict(doc))}

    def behind(self, doc: Mapping[str, Any], in_chat: bool) -> str:
        """The longest answer."""
        return ("" if in_chat else " ") + str(max(doc["choices"], key=len))

    def construct_requests(self, doc: Document, ctx: str, **kwargs: Any) -> list[Instance]:
        """As in the harness.

        Raises:
            UserError: neither the model nor the run's arguments tell into which tokens an answer is cut.
        """
        if not exact_requests.tells_tokens() and self.named_tokenizer is None:
            raise UserError(
                f"{self.config.task} gives log-probabilities per token, and this type of model tells no tokens: "
                "name its tokenizer, tokenizer=... in --model_args or --metadata"
            )
        return super().construct_requests(doc, ctx, **kwargs)

    def apply_filters(self) -> None:
        """As in the harness; then every response knows how many tokens its answer has."""
        super().apply_filters()
        for request in self._instances:
            requests.change_filtered(request, partial(self._with_tokens, request))

    def _with_tokens(self, request: Instance, response: Sequence[Any]) -> Response:
        count = exact_requests.summed if exact_requests.tells_tokens() else self.counted
        return Response(response, max(1, count(*request.args[:2])))

    def process_results(self, doc: Document, results: Sequence[Any]) -> dict[str, Any]:
        """The document's metrics."""
        return {} if requests.predicts_only(self) else super().process_results(doc, results)
