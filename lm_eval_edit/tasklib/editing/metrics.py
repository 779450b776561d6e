"""Answers about edited facts -> metrics, every one named by its protocol.

    em            every token of the target is the likeliest, so greedy generation begins with the target
    token_acc     share of the target's tokens that are the likeliest, the tokens before them given (EasyEdit's)
    prob_success  P(target) > P(other), of the whole objects (the ROME and MEMIT papers')
    correct       `em` of a locality probe's known answer
    unchanged     greedy generation says what the unedited model says
    *_script      as the scripts of the MEMIT repository count it, see `counterfact` and `zsre`

A response comes as [role, tokens, response], see `editing_tasks`. A metric that a document cannot have is None there
and left out of the mean. Every metric `<m>` is followed by `<m>_stderr`; `editing_figures` makes figures of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lm_eval_edit.tasklib.editing.documents import Document

# What a request asks: a piece of the target, the other object, and what is said in words, now and unedited.
ROLES = TARGET, OTHER, SAYS, SAID_UNEDITED = "target", "other", "says", "said unedited"
# Before a role: the object as the published scripts take it, where its tokens are others than ours.
PUBLISHED = "published"
KINDS = EFFICACY, PARAPHRASE, NEIGHBOURHOOD = "efficacy", "paraphrase", "neighbourhood"

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
    said = [response for role, _, response in responses if role.endswith(SAYS)]
    if said:
        return " | ".join(said)
    asked = [each for each in responses if not each[0].startswith(PUBLISHED)]
    if pairs := _compared(asked):
        return f"the target is the likelier of two in {sum(pairs)} of {len(pairs)}"
    target = [str(response[1]) in ("True", "1") for role, _, response in asked if role.endswith(TARGET)]
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


def prompts_of(doc: Document) -> list[tuple[str, list[str]]]:
    """The prompts of a document that has several: (kind, prompts)."""
    return [
        (EFFICACY, [doc.get("prompt", "")]),
        (PARAPHRASE, doc["paraphrases"]),
        (NEIGHBOURHOOD, doc["neighbourhood"]),
    ]


def counterfact(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """CounterFact's figures of one fact, each of `e` (its prompt), `p` (paraphrases) and `n` (neighbourhood prompts).

    es, ps, ns     share of prompts after which o* is likelier than o, for `ns` o than o*; P of the whole object
    es_script ...  the same with P's geometric mean over the object's tokens, as the published scripts have it
    em_script ...  by how much that mean is larger, on average over prompts
    es_acc ...     share of prompts after which every token of the right object is the likeliest
    """
    values: dict[str, list[float | None]] = {"s": [], "s_script": [], "m_script": [], "s_acc": []}
    for kind, prompts in prompts_of(doc):
        right, wrong = (OTHER, TARGET) if kind == NEIGHBOURHOOD else (TARGET, OTHER)
        asked = [f"{kind} {number}" for number in range(len(prompts))]
        margins = [_log_prob(results, f"{each} {right}") - _log_prob(results, f"{each} {wrong}") for each in asked]
        values["s"].append(sum(margin > 0 for margin in margins) / len(prompts))
        published = [_published(results, each, right, wrong) for each in asked]
        for name, shares in zip(("s_script", "m_script", "s_acc"), zip(*published, strict=True), strict=True):
            values[name].append(None if None in shares else sum(shares) / len(prompts))
    fact = doc["fact_id"]
    found = {f"{letter}{name}": value for name, of in values.items() for letter, value in zip("epn", of, strict=True)}
    items = {"score": (fact, *values["s"]), "score_script": (fact, *values["s_script"])}
    scores = {f"{name}{end}": item for name, item in items.items() for end in ("", "_stderr")}
    return scores | with_errors(fact, **found)


SCRIPT = (*(f"{letter}{name}" for name in ("s_script", "m_script", "s_acc") for letter in "epn"), "score_script")
"""The metrics of `counterfact` that need the number of an object's tokens."""


def _published(results: Sequence[Response], asked: str, right: str, wrong: str) -> tuple[float | None, ...]:
    """(success, magnitude, all right) of one prompt; None where nobody knows how many tokens an object has."""
    found = {role: _of(results, f"{PUBLISHED} {asked} {role}") or _of(results, f"{asked} {role}") for role in ROLES[:2]}
    tokens = {role: sum(tokens for tokens, _ in pieces) for role, pieces in found.items()}
    if not all(tokens.values()):
        return None, None, None
    mean = {role: sum(log_prob for _, (log_prob, _) in pieces) / tokens[role] for role, pieces in found.items()}
    exact = all(is_greedy for _, (_, is_greedy) in found[right])
    return float(mean[right] > mean[wrong]), math.exp(mean[right]) - math.exp(mean[wrong]), float(exact)


def zsre(doc: Document, results: Sequence[Response]) -> dict[str, Any]:
    """ZsRE's figures of one fact: the share of the right object's tokens that are the likeliest, those before given,
    over all prompts of a kind together; `ns_token_acc` of the probes' answers."""
    shares = []
    for kind, _ in prompts_of(doc):
        of_kind = [(TARGET, tokens, response) for role, tokens, response in results if role.startswith(kind)]
        shares.append(_token_acc(of_kind))
    item = (doc["fact_id"], *shares)
    figures = dict(zip(ZSRE, shares, strict=True))
    return {"score": item, "score_stderr": item} | with_errors(doc["fact_id"], **figures)


ZSRE = ("es_token_acc", "ps_token_acc", "ns_token_acc")
