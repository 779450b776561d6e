"""Answers about edited facts -> metrics, every one named by its protocol.

    em            every token of the target is the likeliest, so greedy generation begins with the target
    token_acc     share of the target's tokens that are the likeliest, the tokens before them given (EasyEdit's)
    prob_success  P(target) > P(other), of the whole objects (the ROME and MEMIT papers')
    correct       `em` of a locality probe's known answer
    unchanged     greedy generation says what the unedited model says

A response comes as [role, tokens, response], see `editing_tasks`. A metric that a document cannot have is None there
and left out of the mean. Every metric `<m>` is followed by `<m>_stderr`; `editing_figures` makes figures of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_edit.tasklib.editing.documents import Document

# What a request asks: a piece of the target, the other object, and what is said in words, now and unedited.
ROLES = TARGET, OTHER, SAYS, SAID_UNEDITED = "target", "other", "says", "said unedited"

Response = Sequence[Any]


def is_labelled(responses: Any) -> bool:
    """Whether logged responses are those of an edit-quality task."""
    return (
        isinstance(responses, list)
        and bool(responses)
        and all(isinstance(each, list) and len(each) == 3 and str(each[0]).endswith(ROLES) for each in responses)
    )


def answer(responses: Sequence[Response]) -> list[Any]:
    """What of logged responses makes two answers the same or not: the words, and which pieces were the likeliest."""
    own = [response for role, _, response in responses if role != SAID_UNEDITED]
    return [each if isinstance(each, str) else str(each[1]) for each in own]


def in_words(responses: Sequence[Response]) -> str:
    """Logged responses for a reader: what the model says, or how far it is from saying the target."""
    if texts := [response for role, _, response in responses if role == SAYS]:
        return " | ".join(map(str, texts))
    if pairs := _compared(responses):
        return f"the target is the likelier of two in {sum(pairs)} of {len(pairs)}"
    target = [str(response[1]) in ("True", "1") for role, _, response in responses if role.endswith(TARGET)]
    return f"{sum(target)} of {len(target)} pieces of the target are the likeliest"


def _compared(responses: Sequence[Response]) -> list[bool]:
    """Of a document with several prompts: after which of them the target is likelier than the other object."""
    sums: dict[str, float] = {}
    for role, _, response in responses:
        sums[role] = sums.get(role, 0.0) + float(response[0])
    asked = [role.removesuffix(TARGET) for role in sums if role.endswith(f" {TARGET}")]
    return [sums[before + TARGET] > sums[before + OTHER] for before in asked if before + OTHER in sums]


def _of(results: Sequence[Response], role: str) -> list[tuple[int, Any]]:
    return [(tokens, response) for asked, tokens, response in results if asked == role]


def _exact(results: Sequence[Response]) -> float:
    return float(all(is_greedy for _, (_, is_greedy) in _of(results, TARGET)))


def _token_acc(results: Sequence[Response]) -> float | None:
    asked = [(tokens, is_greedy) for tokens, (_, is_greedy) in _of(results, TARGET)]
    total = sum(tokens for tokens, _ in asked)
    return sum(tokens for tokens, is_greedy in asked if is_greedy) / total if total else None


def _log_prob(results: Sequence[Response], role: str) -> float:
    return sum(log_prob for _, (log_prob, _) in _of(results, role))


def _likelier(results: Sequence[Response]) -> float | None:
    return float(_log_prob(results, TARGET) > _log_prob(results, OTHER)) if _of(results, OTHER) else None


def with_errors(fact_id: str, **values: float | None) -> dict[str, Any]:
    """Each metric, and after it what its standard error is computed from."""
    return {
        name: value
        for metric, plain in values.items()
        for name, value in ((metric, plain), (f"{metric}_stderr", (fact_id, plain)))
    }


def edited(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """Efficacy and generalization; the headline `score` is `em`."""
    em = _exact(results)
    return with_errors(doc["fact_id"], score=em, em=em, token_acc=_token_acc(results), prob_success=_likelier(results))


def locality(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """The headline `score` is `correct`, which any model has, edited or not."""
    correct = _exact(results)
    said = [text for role in (SAYS, SAID_UNEDITED) for _, text in _of(results, role)]
    return with_errors(
        doc["fact_id"],
        score=correct,
        correct=correct,
        # The unedited model is asked once and is its own comparison.
        unchanged=float(said[0] == said[-1]) if said else None,
        token_acc=_token_acc(results),
        prob_success=_likelier(results),
    )


def counterfact(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """Of one fact: whether o* is likelier after its prompt, the share of its paraphrases after which it is, and the
    share of its neighbourhood prompts after which the true object still is."""
    shares = []
    for kind, n in (
        ("efficacy", 1),
        ("paraphrase", len(doc["paraphrases"])),
        ("neighbourhood", len(doc["neighbourhood"])),
    ):
        margins = [
            _log_prob(results, f"{kind} {number} {TARGET}") - _log_prob(results, f"{kind} {number} {OTHER}")
            for number in range(n)
        ]
        shares.append(sum(m < 0 if kind == "neighbourhood" else m > 0 for m in margins) / n)
    fact, (es, ps, ns) = doc["fact_id"], shares
    item = (fact, es, ps, ns)
    return {"score": item, "score_stderr": item} | with_errors(fact, es=es, ps=ps, ns=ns)
