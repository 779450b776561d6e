"""What `edithurt_counterfact_generation` needs beside the facts, and whether it is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.errors import UserError, in_one_error, problems_of
from lm_eval_edit.facts.tokens import encode, most_tokens
from lm_eval_edit.tasklib.arguments import given
from lm_eval_edit.tasklib.editing import texts
from lm_eval_edit.tasklib.editing.snippets import Snippets, read_snippets
from lm_eval_edit.tasklib.shorten import budget_of

TASK = "edithurt_counterfact_generation"
MAX_TOKENS = 100


@dataclass(frozen=True)
class Inputs:
    """The choices of a run.

    Attributes:
        snippets: The reference texts; None without any.
        word_tokenizer: How texts are cut into words, see `texts.word_tokenizer`.
        sampling_seed: What the texts' seeds are made of.
        text_tokens: How many tokens a text has, its prompt included.
    """

    snippets: Snippets | None
    word_tokenizer: str
    sampling_seed: int
    text_tokens: int

    def record(self) -> dict[str, Any]:
        """What the provenance says of them."""
        record: dict[str, Any] = {"word_tokenizer": self.word_tokenizer, "sampling_seed": self.sampling_seed}
        record["text_tokens"] = self.text_tokens
        if self.snippets is not None:
            record["snippets"] = str(self.snippets.path)
            record["snippets_sha256"] = self.snippets.sha256
            record["weights_of_words"] = self.snippets.weights
        return record


def inputs(metadata: Mapping[str, Any], source: str) -> Inputs:
    """What a run's arguments say, and the demo's own texts for the demo's facts, cut without a model to download.

    Args:
        metadata: All model arguments and `--metadata`.
        source: Where the facts are from.

    Raises:
        UserError: the reference texts cannot be read, or a number is none; a ConfigurationError where it is several.
    """
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, read in (
        ("snippets", lambda: _snippets(metadata, source)),
        ("word_tokenizer", lambda: _way(metadata, source)),
        ("sampling_seed", lambda: _whole(metadata, "sampling_seed", 0, 0)),
        ("text_tokens", lambda: _whole(metadata, "text_tokens", MAX_TOKENS, 2)),
    ):
        try:
            found[name] = read()
        except UserError as error:
            problems += problems_of(error)
    if problems:
        raise in_one_error(problems)
    return Inputs(**found)


def _snippets(metadata: Mapping[str, Any], source: str) -> Snippets | None:
    if given(metadata.get("snippets")):
        return read_snippets(str(metadata["snippets"]))
    return read_snippets(demo.SNIPPETS) if source == demo.NAME else None


def _way(metadata: Mapping[str, Any], source: str) -> str:
    if not given(metadata.get("word_tokenizer")):
        return texts.UNTRAINED if source == demo.NAME else texts.PUNKT
    way = str(metadata["word_tokenizer"])
    if way not in texts.WAYS:
        raise UserError(f"word_tokenizer={way}: want {' or '.join(texts.WAYS)}")
    return way


def _whole(metadata: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = metadata[name] if given(metadata.get(name)) else default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not number.is_integer() or number < least:
        raise UserError(f"{name}={value}: want a whole number of at least {least}")
    return int(value)


def no_room(prompt: str, fact: str, count: int, most: int) -> str | None:
    """Why a generation prompt leaves no room for a text; None where it does.

    Args:
        count: Its tokens.
        most: Those of a text, its prompt included.
    """
    if count < most:
        return None
    return (
        f"{TASK}: the generation prompt {prompt[:60]!r} of fact {fact} has {count} tokens, and a text has {most} with "
        f"it: shorten it, or give --metadata text_tokens=N with N above {count}"
    )


def _too_long(metadata: Mapping[str, Any], docs: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """What does not fit, where a run's arguments name a tokenizer: a text into the context, or a prompt into a text."""
    budget = budget_of(dict(metadata), 0)
    if budget is None:
        return []
    if most > budget.limit:
        return [
            f"{TASK}: text_tokens={most}: this model's context holds {budget.limit} tokens; give --metadata "
            f"text_tokens=N with N up to {budget.limit}"
        ]
    for doc in docs:
        for prompt in doc["prompts"]:
            if most_tokens(prompt) >= most:
                found = no_room(prompt, doc["fact_id"], len(encode(budget.tokenizer, prompt)), most)
                if found is not None:
                    return [found]
    return []


def problems(metadata: Mapping[str, Any], source: str, docs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the task lacks, as sentences, before anything is loaded.

    Args:
        metadata, source: As for `inputs`.
        docs: The task's documents.
    """
    lacking = texts.missing_extra()
    problems: list[str] = [lacking] if lacking else []
    try:
        found = inputs(metadata, source)
    except UserError as error:
        return problems + problems_of(error)
    if lacking:
        return problems
    try:
        texts.word_tokenizer(found.word_tokenizer)
    except UserError as error:
        problems += problems_of(error)
    problems += _too_long(metadata, docs, found.text_tokens)
    snippets = found.snippets
    if snippets is None:
        return problems
    if not any(snippets.joined(doc["relation"], doc["object"]) for doc in docs):
        first = docs[0]
        problems.append(
            f"{TASK}: snippets={snippets.path} has no texts for any of the {len(docs)} facts of the schedule; the "
            f"first, {first['fact_id']}, has the relation_id {first['relation']!r} and the target_id "
            f"{first['object']!r}. Give the file that belongs to {source}, or leave snippets out, and consistency "
            f"with it"
        )
    try:
        _ = snippets.vectorizer  # its files fit each other
    except UserError as error:
        problems += problems_of(error)
    return problems
