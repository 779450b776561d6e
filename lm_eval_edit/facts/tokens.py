"""The tokens of prompt, subject and target: one rule for editors, for the checks of their edits, and for the tasks.

What the harness's HFLM asks is the law; this module says it once, and more exactly where HFLM leaves something open:

    in front   the special tokens the tokenizer puts there, or `add_bos_token`; none where the text begins with one
    behind     nothing: a token that a tokenizer appends to every text (EOS, SEP) would stand between prompt and answer
    the cut    prompt and target are tokenised as one text; the prompt's tokens are those it has alone, as far as the
               whole text keeps them, and whatever follows is to be predicted
    subject    its last token is found by the place of its characters in the text, not by counting tokens of a prefix
    between    see `separators`

A tokenizer says by itself how it is asked; what a run's own options change of that (`add_bos_token`,
`prefix_token_id`) is noted on it with `ask_as`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval_edit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], list[int]]

_NOTED = "_lm_eval_edit_manner"
_LENGTH_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")  # HFLM's, in its order


@dataclass(frozen=True)
class Manner:
    """How HFLM asks a tokenizer.

    Attributes:
        add_special_tokens: HFLM's `add_bos_token`; None is the tokenizer's own default.
        prefix_token_id: The token that a text may begin with, so that no second one is put before it.
    """

    add_special_tokens: bool | None = None
    prefix_token_id: int | None = None


def ask_as(tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool | None, prefix_token_id: int | None) -> None:
    """Note on a tokenizer how the run's HFLM asks it; editors and checks then do so too."""
    setattr(tokenizer, _NOTED, Manner(add_special_tokens, prefix_token_id))


def _manner(tokenizer: PreTrainedTokenizerBase) -> Manner:
    noted = getattr(tokenizer, _NOTED, None) or Manner()
    if noted.prefix_token_id is not None:
        return noted
    ids = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    return Manner(noted.add_special_tokens, next((each for each in ids if each is not None), None))


REMEMBERED = 4096  # texts; then all are forgotten

_remembered: ContextVar[dict[tuple[str, int, str], Any] | None] = ContextVar("_remembered", default=None)


@contextmanager
def each_text_once() -> Iterator[None]:
    """Within the block a tokenizer, which nobody changes there, is asked once for each text's tokens.

    An operation asks for the same prompts again and again: to answer them, to optimise, for keys, to answer them anew.
    """
    mark = _remembered.set({})
    try:
        yield
    finally:
        _remembered.reset(mark)


def _once(what: str, tokenizer: PreTrainedTokenizerBase, text: str, ask: Callable[[], list[Any]]) -> list[Any]:
    known = _remembered.get()
    if known is None:
        return ask()
    key = (what, id(tokenizer), text)
    if key not in known:
        if len(known) >= REMEMBERED:
            known.clear()
        known[key] = ask()
    return list(known[key])


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's tokens as HFLM asks them, without any that the tokenizer would put behind it."""
    return _once("tokens", tokenizer, text, lambda: _encode(tokenizer, text))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    special = _special(tokenizer, text)
    ids = tokenizer.encode(text, verbose=False, **special)  # what is too long is told by those who ask
    return ids if special.get("add_special_tokens") is False else without_appended(tokenizer, text, ids)


def _special(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, bool]:
    manner = _manner(tokenizer)
    if manner.prefix_token_id is not None:
        prefix = tokenizer.decode(manner.prefix_token_id)
        assert isinstance(prefix, str), "one token id was decoded, which makes one text"
        if prefix and text.startswith(prefix):
            return {"add_special_tokens": False}
    return {} if manner.add_special_tokens is None else {"add_special_tokens": manner.add_special_tokens}


def without_appended(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """The tokens of a text less the special ones that the tokenizer put behind it; those of the text itself stay."""
    if not appended(tokenizer):
        return ids
    own = tokenizer.encode(text, add_special_tokens=False)
    for start in range(len(ids) - len(own) + 1):
        if ids[start : start + len(own)] == own:
            return ids[: start + len(own)]
    return ids


def appended(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that a tokenizer puts behind every text."""
    if not tokenizer.num_special_tokens_to_add():
        return []
    own: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a")
    for start in range(len(whole) - len(own) + 1):
        if whole[start : start + len(own)] == own:
            return whole[start + len(own) :]
    return []


def cut(of: Encode, text: str, target: str) -> tuple[list[int], list[int]]:
    """(the text's tokens, the target's) of the two as one text, by a way to make tokens; see `continuation`."""
    alone, whole = of(text), of(text + target)
    start = min(len(alone), len(whole))
    while whole[:start] != alone[:start]:
        start -= 1
    return whole[:start], whole[start:]


def continuation(tokenizer: PreTrainedTokenizerBase, text: str, target: str) -> tuple[list[int], list[int]]:
    """A text's tokens, and those of a target (with its separator) that continues it.

    The target is tokenised where it stands: alone, a SentencePiece tokenizer puts a word boundary before it that no
    text has there. Nothing is ever decoded: SentencePiece drops a leading space then, and bytes of a part of a
    character are lost. Where the text's last tokens become others once the target follows (a trailing space that
    becomes one with a word, say), what is to be predicted begins with the first that does.

    Returns:
        (the text's tokens, any beginning-of-sequence token included; the target's), the tokens of the whole together.

    Raises:
        UserError: the target adds no token, or the text has none of its own.
    """
    before, after = cut(lambda each: encode(tokenizer, each), text, target)
    if not before or not after:
        why = "adds no token to" if before else "leaves no token of"
        raise UserError(f"the target {target!r} {why} the prompt {text!r} in this model's vocabulary")
    return before, after


def last_token(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int) -> int | None:
    """The place among `encode(text)` of the last token that holds characters of text[start:end]; None without one.

    White space at the end of the part is not looked at: it is a slip of the data, or begins the next word's token.

    Raises:
        UserError: a tokenizer without offsets (one written in Python) has a token across the part's end.
    """
    end = start + len(text[start:end].rstrip())
    if not getattr(tokenizer, "is_fast", False):
        return _counted(tokenizer, text, end)

    def ask() -> list[tuple[int, int]]:
        special = _special(tokenizer, text)
        return list(tokenizer(text, return_offsets_mapping=True, verbose=False, **special)["offset_mapping"])

    offsets = _once("offsets", tokenizer, text, ask)
    # A normaliser may have dropped the very last character: then the last token that begins before the end.
    held = [place for place, (a, b) in enumerate(offsets) if a < min(b, end) and b > start]
    return held[-1] if held else None


def _counted(tokenizer: PreTrainedTokenizerBase, text: str, end: int) -> int | None:
    """As the published implementations find it: tokens of the text up to there, less one; right where these stay."""
    before = encode(tokenizer, text[:end])
    if encode(tokenizer, text)[: len(before)] != before:
        raise UserError(
            f"the subject's end in {text[:end]!r} lies within a token of {text!r}, and this tokenizer "
            f"({type(tokenizer).__name__}) does not say which: use a fast one (tokenizer.json)"
        )
    return len(before) - 1 if before else None


# ------------------------------------------------------------------------------------------------------------- context


def context_size(config: Any, max_length: int | None = None) -> int | None:
    """How many tokens a model's context holds; None where its configuration does not say.

    Args:
        config: The model's configuration.
        max_length: HFLM's option, which wins.
    """
    if max_length is not None:
        return int(max_length)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    sizes = (getattr(text, name, None) for name in _LENGTH_NAMES)
    return next((int(size) for size in sizes if size is not None), None)


def most_tokens(text: str) -> int:
    """More tokens than any tokenizer makes of a text, told without one: no token holds less than a byte."""
    # Unicode's widest compatibility decomposition is 18 characters of two bytes; eight for special tokens and the like.
    wide = 0 if text.isascii() else sum(not character.isascii() for character in text)
    return len(text) + 35 * wide + 8


def over_context(tokenizer: PreTrainedTokenizerBase, text: str, target: str, size: int | None) -> int | None:
    """The number of tokens that a prompt and its target take, if that is more than the context holds.

    The target's last token is never read, so it needs no place.
    """
    if size is None or most_tokens(text + target) <= size:
        return None
    tokens = len(encode(tokenizer, text + target)) - 1 if target else len(encode(tokenizer, text))
    return tokens if tokens > size else None


def check_fits(ids: Sequence[int], size: int | None, text: str) -> None:
    """Refuse tokens that a model cannot read.

    Raises:
        UserError: naming the beginning of the text, its number of tokens and the context.
    """
    if size is not None and len(ids) > size:
        raise UserError(
            f"the prompt {text[:60]!r}{'...' * (len(text) > 60)} has {len(ids)} tokens with its target; this model's "
            f"context holds {size}"
        )
