"""Prompts that a model cannot read: looked for before anything runs, so that all of them are named at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm_eval_edit.facts.fact import SLOT, Fact
from lm_eval_edit.facts.tokens import ask_as, encode, most_tokens

_LOADING = ("revision", "trust_remote_code", "subfolder", "gguf_file")
_NAMED = 20  # problems told one by one


def flat(templates: Sequence[Any] | None) -> list[str]:
    """Context templates of either form as a flat list; the bare one where there are none."""
    found = [text for entry in templates or () for text in ([entry] if isinstance(entry, str) else entry)]
    return found or [SLOT]


def too_long(
    facts: Iterable[Fact], size: int | None, tokenizer_of: Callable[[], Any], contexts: Sequence[str] = (SLOT,)
) -> list[str]:
    """The facts whose prompt and target do not fit into a model's context, as sentences.

    Args:
        size: Tokens that the context holds; None where nobody knows.
        tokenizer_of: Loads the tokenizer; called only where the length in characters does not tell. May give None.
        contexts: Context templates that stand before the prompts.
    """
    if size is None:
        return []
    before = max(map(most_tokens, contexts))
    doubtful = [fact for fact in facts if before + most_tokens(fact.text + fact.target) > size]
    tokenizer = tokenizer_of() if doubtful else None
    if tokenizer is None:
        return []
    problems = [why for fact in doubtful if (why := _problem(tokenizer, fact, size, contexts))]
    more = len(problems) - _NAMED
    return problems if more <= 0 else [*problems[:_NAMED], f"{more} more facts have prompts that are too long"]


def _problem(tokenizer: Any, fact: Fact, size: int, contexts: Sequence[str]) -> str | None:
    def tokens(context: str) -> tuple[int, int]:
        text = fact.text_behind(context)
        # Several methods read the target to its last token, whatever they make of it: it needs a place.
        return len(encode(tokenizer, text + fact.target)), len(encode(tokenizer, text))

    counted = [(tokens(context), context) for context in (SLOT, *contexts)]
    over = [each for each in counted if max(each[0]) > size]
    if not over:
        return None
    (whole, prompt), context = over[0] if over[0][1] == SLOT else max(over)
    behind = "" if context == SLOT else f" behind the context template {context!r}"
    long = f"{prompt} tokens" if prompt > size else f"{prompt} tokens and its target {whole - prompt} more"
    return (
        f"fact {fact.id}: its prompt has {long}{behind}; this model's context holds {size}. Leave the fact out or "
        f"shorten its prompt ({fact.text[:50]!r}...)"
    )


def planned_tokenizer(source: Any, others: Mapping[str, Any]) -> Any:
    """The tokenizer that HFLM will load for a run, before the model is; None where it cannot be had yet.

    Args:
        source: A path or hub id, or a model object.
        others: HFLM's options as given.
    """
    from transformers import AutoTokenizer

    given = others.get("tokenizer")
    name = given or (source if isinstance(source, str) else getattr(source, "name_or_path", None))
    if not name:
        return None
    bos = others.get("add_bos_token")
    tokenizer = name
    if isinstance(name, str):
        how = {key: others[key] for key in _LOADING if others.get(key)} | (
            {} if bos is None else {"add_bos_token": bos}
        )
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=others.get("use_fast_tokenizer", True), **how)
        except Exception:  # whatever it is, HFLM meets it too and tells
            return None
        ask_as(tokenizer, bos, others.get("prefix_token_id"))
    return tokenizer
