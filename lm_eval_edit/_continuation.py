"""The tokens with which a target continues a text: one rule for editors and for the check that an edit took."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lm_eval_edit.errors import UserError


def continuation(tokenizer: PreTrainedTokenizerBase, text: str, target: str) -> tuple[list[int], list[int]]:
    """A text's tokens, and those of a target (with its leading space) that continues it.

    The target is tokenised where it stands: alone, a SentencePiece tokenizer puts a word boundary before it that no
    text has there. Nothing is ever decoded: SentencePiece drops a leading space then, and bytes of a part of a
    character are lost. Where the text's last tokens become others once the target follows (after a trailing space, for
    some tokenizers), what is to be predicted begins with the first that does.

    Returns:
        (the text's tokens, any beginning-of-sequence token included; the target's), the tokens of the whole together.

    Raises:
        UserError: the target adds no token, or the text has none of its own.
    """
    alone, whole = tokenizer.encode(text), tokenizer.encode(text + target)
    start = len(alone)
    while whole[:start] != alone[:start]:
        start -= 1
    if not 0 < start < len(whole):
        why = "adds no token to" if start else "leaves no token of"
        raise UserError(f"the target {target!r} {why} the prompt {text!r} in this model's vocabulary")
    return whole[:start], whole[start:]
