"""Cut passages and dialogues so that no prompt loses its instruction.

The harness cuts a prompt that is too long from the left, down to the model's length minus the tokens to be generated.
That takes the start: half the passage, and with it the instruction or the question before it. Here, when the documents
are loaded, the long field itself loses its end instead, at a token boundary, until the whole prompt fits.

What a run puts around the prompts (a chat template, a system instruction), or that it wants more tokens, is known only
when the requests are built; the task cuts again then (`suite.task`). A run whose arguments name no tokenizer (API
models) gets no shortening.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.tokens import ask_as
from lm_eval_edit.tasklib.arguments import given, named_model

logger = logging.getLogger("lm_eval_edit")

Document = dict[str, Any]
Prompt = Callable[[Document], str]

DEMO_CHECKPOINT = demo.CHECKPOINT
_DEFAULT_LENGTH = 2048  # HFLM's
_UNSET_LENGTH = int(1e15)  # transformers' way to say that a tokenizer has no length is a number beyond this
_LENGTH_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")
_LENGTH_ARGUMENTS = ("max_length", "max_model_len")  # hf's, vllm's
_LOADING = ("revision", "trust_remote_code", "subfolder", "gguf_file")
_BATCH = 1024

# No tokenizer makes more than one token of an ASCII character, nor more than 36 of any other: Unicode's widest
# compatibility decomposition is 18 characters, of two bytes each. A few more for special tokens and a prefix space.
_TOKENS_PER_CHARACTER = 36
_EXTRA_TOKENS = 8


class Budget:
    """Counts a prompt's tokens as the model will and says how many it may have.

    Args:
        tokenizer: A transformers tokenizer.
        limit: Largest number of prompt tokens, special tokens included.
        add_special_tokens: As the model encodes prompts; None is the tokenizer's own default.
    """

    def __init__(self, tokenizer: Any, limit: int, add_special_tokens: bool | None = None):
        self.tokenizer = tokenizer
        self.limit = limit
        self._special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}

    def certain(self, text: str) -> bool:
        """Whether the text fits for sure, told without tokenizing it."""
        wide = 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))
        return len(text) + (_TOKENS_PER_CHARACTER - 1) * wide + _EXTRA_TOKENS <= self.limit

    def excess(self, texts: Sequence[str]) -> list[int]:
        """Tokens over the limit, for each text; 0 or less for one that fits."""
        # As HFLM has it: a text that begins with the token (a chat template writes one) gets no second one before it.
        bos = str(getattr(self.tokenizer, "bos_token", None) or "")
        begun = [bool(bos) and text.startswith(bos) for text in texts]
        counts: dict[bool, Iterator[int]] = {}
        for has_bos, special in ((False, self._special), (True, {"add_special_tokens": False})):
            some = [text for text, its_own in zip(texts, begun, strict=True) if its_own == has_bos]
            counts[has_bos] = iter(
                [len(ids) for batch in self._tokenized(some, **special) for ids in batch["input_ids"]]
            )
        return [next(counts[has_bos]) - self.limit for has_bos in begun]

    def ends(self, texts: Sequence[str]) -> list[list[int]]:
        """Where each text may be cut: the character positions after its tokens.

        Two tokens of one character (byte-level tokenizers) end at the same position. Tokenizers without offsets
        give every position.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return [list(range(1, len(text) + 1)) for text in texts]
        batches = self._tokenized(texts, add_special_tokens=False, return_offsets_mapping=True)
        return [[end for _, end in offsets] for batch in batches for offsets in batch["offset_mapping"]]

    def _tokenized(self, texts: Sequence[str], **options: Any) -> Iterator[Any]:
        """In batches, which a fast tokenizer spreads over the cores; each is gone before the next is made."""
        for first in range(0, len(texts), _BATCH):
            yield self.tokenizer(list(texts[first : first + _BATCH]), **options, verbose=False)


def shorten(docs: Sequence[Document], prompt: Prompt, fields: Sequence[str], budget: Budget) -> None:
    """Shorten, in place, the fields of the documents whose prompts are over the budget.

    A field loses whole tokens from its end, and the next field is touched only when the one before is empty. Shortened
    documents are marked `shortened`. One that does not fit even with all its fields empty is left as it was and marked
    `overlong`: cutting it would not save its instruction.
    """
    candidates = [doc for doc in docs if not budget.certain(prompt(doc))]
    over = _over(candidates, prompt, budget)
    before = [(doc, {name: doc[name] for name in fields}) for doc, _ in over]
    for name in fields:
        without = [(doc, n) for doc, n in over if not doc[name]]  # nothing to cut here: on to the next field
        over = without + _shorten_field([(doc, n) for doc, n in over if doc[name]], prompt, name, budget)
    stuck = {id(doc) for doc, _ in over}
    for doc, original in before:
        if id(doc) in stuck:
            doc.update(original, overlong=True)
        else:
            doc["shortened"] = True


def _over(docs: Sequence[Document], prompt: Prompt, budget: Budget) -> list[tuple[Document, int]]:
    """The documents whose prompts are too long, with the number of tokens that are too many."""
    excess = budget.excess([prompt(doc) for doc in docs])
    return [(doc, n) for doc, n in zip(docs, excess, strict=True) if n > 0]


def _shorten_field(
    over: list[tuple[Document, int]], prompt: Prompt, name: str, budget: Budget
) -> list[tuple[Document, int]]:
    """Cut one field of each document as far as needed; returns those that are still too long with the field empty."""
    text = {id(doc): doc[name] for doc, _ in over}
    ends = dict(zip(text, budget.ends(list(text.values())), strict=True))
    empty: list[tuple[Document, int]] = []
    while over:
        for doc, n in over:
            # A new end can merge with what follows into other tokens, so count again and cut more if needed. Every
            # round takes at least one token, so there are few rounds, all documents at once.
            kept = ends[id(doc)] = ends[id(doc)][: max(0, len(ends[id(doc)]) - n)]
            doc[name] = text[id(doc)][: kept[-1]] if kept else ""
        over = _over([doc for doc, _ in over], prompt, budget)
        empty += [(doc, n) for doc, n in over if not ends[id(doc)]]
        over = [(doc, n) for doc, n in over if ends[id(doc)]]
    return empty


def fit(
    docs: Sequence[Document], prompt: Prompt, fields: Sequence[str], new_tokens: int, metadata: dict[str, Any]
) -> int | None:
    """Shorten documents for the model that the run's arguments name.

    Returns:
        The number of tokens a prompt may have, or None where the arguments name no tokenizer that can be loaded.
    """
    budget = budget_of(metadata, new_tokens)
    if budget is None:
        return None
    if budget.limit > 0:
        shorten(docs, prompt, fields, budget)
    overlong = sum(doc["overlong"] for doc in docs)
    if overlong:
        logger.warning(
            "%d of %d %s prompts are over %d tokens even without their text: the harness will cut their start",
            overlong,
            len(docs),
            prompt.__name__,
            budget.limit,
        )
    return budget.limit


def budget_of(metadata: dict[str, Any], new_tokens: int) -> Budget | None:
    """The prompt budget of the model that the arguments name; None if no tokenizer can be had from them."""
    model = named_model(metadata)
    if model is None and DEMO_CHECKPOINT.is_dir():
        model = str(DEMO_CHECKPOINT)
    elif not given(metadata.get("pretrained")):
        model = None  # an API's name for its model is no checkpoint
    try:
        model = demo.loadable(model)  # a word for a checkpoint is no folder, and no hub id
    except UserError:  # its packages are not there, which the model's own loading says
        return None
    tokenizer = metadata["tokenizer"] if given(metadata.get("tokenizer")) else model
    if tokenizer is None:
        return None
    options = {key: metadata[key] for key in _LOADING if given(metadata.get(key))}
    bos = metadata.get("add_bos_token")
    loaded = _tokenizer(tokenizer, bos, options)
    if loaded is None:
        return None
    if loaded is not tokenizer:  # one that was given is noted on by the model that asks it
        ask_as(loaded, None if bos is None else bool(bos), metadata.get("prefix_token_id"))
    lengths = (metadata.get(name) for name in _LENGTH_ARGUMENTS)
    length = next((length for length in lengths if given(length)), None)
    limit = model_length(_config(model, options), loaded) if length is None else int(length)
    return Budget(loaded, limit - new_tokens, None if bos is None else bool(bos))


def model_length(config: Any, tokenizer: Any) -> int:
    """A model's context length by HFLM's rule: the (text model's) configuration, else the tokenizer, else 2048."""
    config = getattr(config, "text_config", None) or config
    for name in _LENGTH_NAMES:
        if (length := getattr(config, name, None)) is not None:
            return int(length)
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and length < _UNSET_LENGTH else _DEFAULT_LENGTH


def _tokenizer(name: Any, bos: Any, options: dict[str, Any]) -> Any:
    if not isinstance(name, str):  # an object, from a Python call: a tokenizer, or a model that knows its name
        if callable(getattr(name, "encode", None)):
            return name
        name = getattr(name, "name_or_path", None)
    extra = {} if bos is None else {"add_bos_token": bos}
    return _from_pretrained("AutoTokenizer", name, tuple(sorted({**options, **extra}.items()))) if name else None


def _config(model: Any, options: dict[str, Any]) -> Any:
    if not isinstance(model, str):
        return getattr(model, "config", None)
    return _from_pretrained("AutoConfig", model, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=8)
def _from_pretrained(auto_class: str, name: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """Loaded once for the eight tasks of a run; None, with a warning, where it cannot be loaded."""
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(name, **dict(options))
    except Exception as error:  # a missing file, no network, unknown code: the model's own loading will tell more
        kind = type(error).__name__
        logger.warning("prompts are not shortened to fit: %s of %s cannot be loaded (%s)", auto_class, name, kind)
        return None
