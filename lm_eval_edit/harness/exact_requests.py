"""Requests for one token of an object, for models of the harness whose tokens are at hand: HFLM and `edited_hf`.

A log-likelihood request is two texts, which the harness cuts into tokens as it sees fit: it moves white space at the
prompt's end to the object, and a text cannot end inside a character. A request of this kind is

    (prompt, object, {"token": i, "of": n})

and asks for the i-th of the n tokens that the object has behind its prompt (`tokens.cut`, by the model's own way to
make tokens), given the prompt and the object's tokens before it. The index can be seen in the logged samples and is a
part of the response cache's key. With `"alone": true` more, the object's tokens are those that it has alone, as the
published CounterFact and ZsRE scripts take them, whatever the whole text is cut into. Other model types do not know
such requests: tasks make them only for a model that `answers_tokens`, which they learn from `evaluated`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.tokens import cut, without_appended

TOKEN = "token"
OF = "of"
ALONE = "alone"

_TELLING = "tells_tasks_their_model"  # a mark on the harness's function, so that it is changed once

_evaluated: ContextVar[Any] = ContextVar("evaluated", default=None)
_asked: ContextVar[Any] = ContextVar("asked", default=None)  # the same of any kind, able or not


class OneToken(str):
    """An object of which one token is asked, in the place of a continuation; as a text it is like no object.

    Args:
        target: The object, its separator included.
        place, count: Which of how many tokens.
        known: (prompt, object, alone) -> its tokens, shared by the requests of one call.
        alone: Whether the object's tokens are those it has alone.
    """

    target: str
    place: int
    count: int  # type: ignore[assignment]  # in the place of str's method, which nothing asks of such an object
    known: dict[tuple[str, str, bool], Any]
    alone: bool

    def __new__(
        cls, target: str, place: int, count: int, known: dict[tuple[str, str, bool], Any], alone: bool = False
    ) -> OneToken:
        # So that the response cache takes it for no other.
        made = super().__new__(cls, f"{target}\0{place}/{count}{' alone' if alone else ''}")
        made.target, made.place, made.count, made.known, made.alone = target, place, count, known, alone
        return made

    def encoded(self, lm: Any, prompt: str) -> tuple[list[int], list[int]]:
        """(the tokens before, the token itself), by the model's own way to make tokens.

        Raises:
            UserError: the object has another number of tokens for the model than for the task.
        """
        key = (prompt, self.target, self.alone)
        if key not in self.known:
            self.known[key] = (tokens_alone if self.alone else asked_together)(lm, prompt, self.target)
        contexts, after = self.known[key]
        if len(after) != self.count:
            raise UserError(
                f"{self.target!r} has {len(after)} tokens behind {prompt[-60:]!r} for this model, and {self.count} for "
                f"the task that asks: leave --cache_requests out, which keeps another model's requests"
            )
        return contexts[self.place], after[self.place : self.place + 1]


def tokens_of(lm: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """The tokens that a model of the harness makes of a prompt and of the object that continues it."""

    return cut(functools.partial(_encoded, lm), prompt, target)


def _encoded(lm: Any, text: str) -> list[int]:
    ids: list[int] = lm.tok_encode(text)
    # A model that `answers_tokens` has nothing behind a text already.
    return ids if getattr(lm, "answers_tokens", False) else without_appended(lm.tokenizer, text, ids)


def asked_together(lm: Any, prompt: str, target: str) -> tuple[list[list[int]], list[int]]:
    """(the tokens before each of an object's tokens, those tokens), prompt and object being one text."""
    before, after = tokens_of(lm, prompt, target)
    return [before + after[:place] for place in range(len(after))], after


def tokens_alone(lm: Any, prompt: str, target: str) -> tuple[list[list[int]], list[int]]:
    """(the tokens before each of an object's tokens, those tokens) as the published scripts have them.

    The object's tokens are those of its text alone, without special tokens. They are asked for one after another in
    the tokens of the whole text, behind as many as the prompt alone has: what those are is not looked at.
    """
    start, whole = len(_encoded(lm, prompt)), _encoded(lm, prompt + target)
    after: list[int] = lm.tokenizer.encode(target, add_special_tokens=False)
    return [whole[: start + place] for place in range(len(after))], after


def asking(prompt: str, target: str, index: int, count: int, alone: bool = False) -> tuple[str, str, dict[str, Any]]:
    """The arguments of a request for one token."""
    which: dict[str, Any] = {TOKEN: index, OF: count}
    return prompt, target, which | {ALONE: True} if alone else which


def as_pairs(requests: Sequence[Instance]) -> list[Instance]:
    """The requests as the harness knows them; one for a token has an `OneToken` for its continuation."""
    known: dict[tuple[str, str, bool], Any] = {}
    return [_as_pair(request, known) for request in requests]


def _as_pair(request: Instance, known: dict[tuple[str, str, bool], Any]) -> Instance:
    if len(request.args) != 3 or TOKEN not in request.args[2]:
        return request
    prompt, target, which = request.args
    pair = copy(request)
    pair.arguments = (prompt, OneToken(target, which[TOKEN], which[OF], known, which.get(ALONE, False)))
    return pair


def answers_tokens(lm: Any) -> bool:
    """Whether a model of the harness answers requests for one token."""
    if getattr(lm, "answers_tokens", False):
        return True
    from lm_eval.models.huggingface import HFLM

    # A class of someone's own that asks in another way is left to it.
    own = (getattr(type(lm), name, None) for name in ("loglikelihood", "_encode_pair"))
    return isinstance(lm, HFLM) and lm.backend == "causal" and tuple(own) == (HFLM.loglikelihood, HFLM._encode_pair)


def evaluated() -> Any:
    """The model that is being evaluated, if it answers requests for one token; else None."""
    return _evaluated.get()


def asked_model() -> Any:
    """The model that is being evaluated, whatever it can answer; None outside of an evaluation."""
    return _asked.get()


def tells_tokens() -> bool:
    """Whether the model that is being evaluated, of whatever kind, cuts its requests into tokens by itself."""
    return callable(getattr(_asked.get(), "_encode_pair", None))


def summed(prompt: str, target: str) -> int:
    """How many tokens the evaluated model's log-likelihood of `target` after `prompt` is a sum over.

    Asked of the model's own way to cut the two texts, which is what its answer goes by. Only where it `tells_tokens`.
    """
    return len(_asked.get()._encode_pair(prompt, target)[1])


@contextmanager
def evaluating(lm: Any) -> Iterator[None]:
    """Within this block tasks know the model they ask, and it answers requests for one token if it can."""
    lm = getattr(lm, "lm", lm)  # the response cache stands before it
    able = answers_tokens(lm)
    taught = _taught(lm) if able and not getattr(lm, "answers_tokens", False) else {}
    mark, any_mark = _evaluated.set(lm if able else None), _asked.set(lm)
    before = {name: vars(lm)[name] for name in taught if name in vars(lm)}
    vars(lm).update(taught)
    try:
        yield
    finally:
        _evaluated.reset(mark)
        _asked.reset(any_mark)
        for name in taught:
            del vars(lm)[name]
        vars(lm).update(before)  # what somebody else had put in the place of a method


def _taught(lm: Any) -> dict[str, Callable[..., Any]]:
    """What a plain HFLM lacks: to answer requests for one token, to sample with generators of their own, to ask a text
    for its own tokens."""
    from lm_eval_edit.harness import rolling, sampled

    asked, encode_pair, generate = lm.loglikelihood, lm._encode_pair, lm.generate_until

    def loglikelihood(requests: list[Instance], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        return asked(as_pairs(requests), *args, **kwargs)

    def _encode_pair(context: str, continuation: str) -> tuple[list[int], list[int]]:
        if isinstance(continuation, OneToken):
            return continuation.encoded(lm, context)
        return encode_pair(context, continuation)

    def generate_until(requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return sampled.answered(lm, requests, lambda some: generate(some, disable_tqdm=disable_tqdm), disable_tqdm)

    return {
        "loglikelihood": loglikelihood,
        "_encode_pair": _encode_pair,
        "generate_until": generate_until,
        "loglikelihood_rolling": rolling.apart(lm, lm.loglikelihood_rolling),
        "tok_encode": rolling.own_tokens(lm.tok_encode),
    }


def tell_tasks_their_model() -> None:
    """Make the harness's `evaluate` tell which model it asks. May be called again and again."""
    from lm_eval import evaluator

    stock = evaluator.evaluate
    if hasattr(stock, _TELLING):
        return

    @functools.wraps(stock)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        with evaluating(kwargs["lm"] if "lm" in kwargs else args[0]):
            return stock(*args, **kwargs)

    setattr(evaluate, _TELLING, True)
    evaluator.evaluate = evaluate
