"""What a model said, with what its text alone does not tell: how it ended, and of which weights.

The harness decodes without special tokens, the paper's scripts with them: to those an output that ended at once is
`<|endoftext|>`, and one that ended later carries that token after its text. The metric `script` asks for that text.
"""

from __future__ import annotations

from typing import Any

EXACT = "exact"  # the generated tokens were seen (`--model edited_hf`)
BY_COUNT = "by count"  # the text was tokenized again, and makes fewer tokens than were allowed
UNKNOWN = "unknown"  # neither could be done: no tokenizer, or stop strings that end an output too

# The end of text in the paper's scripts, where no tokenizer says what it is. An empty output surely ended.
END_OF_TEXT = "<|endoftext|>"


class Output(str):
    """An output as the harness hands it on, and what is known of it.

    Made of a text alone it knows nothing: the harness brings a task's targets into the type of its outputs.

    Attributes:
        decoded: The text with its special tokens, up to and including the end-of-text token.
        ended: Whether the model ended it, within the tokens it was allowed; None where that is not known.
        known: How that is known: `EXACT`, `BY_COUNT` or `UNKNOWN`.
        edited: Whether the weights carried edits.
    """

    decoded: str
    ended: bool | None
    known: str
    edited: bool

    def __new__(
        cls,
        text: str,
        decoded: str | None = None,
        ended: bool | None = None,
        known: str = UNKNOWN,
        edited: bool = False,
    ) -> Output:
        output = super().__new__(cls, text)
        output.decoded = str(text) if decoded is None else decoded
        output.ended, output.known, output.edited = ended, known, edited
        return output

    # Its arguments are those of our `__new__`, not of str's.
    def __getnewargs__(self) -> tuple[str, str, bool | None, str, bool]:  # type: ignore[override]
        """For copies and for the response cache, which stores outputs pickled."""
        return str(self), self.decoded, self.ended, self.known, self.edited


def by_count(text: str, tokenizer: Any, new_tokens: int | None, edited: bool) -> Output:
    """An output of which only the text is known.

    The text may make fewer tokens than the model generated (two of its tokens can be one of the tokenizer's), so this
    is an estimate; it errs towards `ended`.

    Args:
        text: As the harness decoded it.
        tokenizer: The model's; None where the run names none.
        new_tokens: How many tokens the model was allowed; None where something else may have ended the output.
        edited: Whether the weights carry edits, as far as the run's arguments say.
    """
    if tokenizer is None or new_tokens is None:
        return Output(text, text or END_OF_TEXT, None, UNKNOWN, edited)
    ended = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) < new_tokens
    end = (tokenizer.eos_token or END_OF_TEXT) if ended else ""
    return Output(text, text + end, ended, BY_COUNT, edited)


def decoded(output: str) -> str:
    """The text as the paper's scripts decode it; a plain string is taken as that text, an empty one as a bare end."""
    return output.decoded if isinstance(output, Output) else output or END_OF_TEXT


def from_edited(output: str) -> bool:
    """Whether the output is known to come from edited weights."""
    return isinstance(output, Output) and output.edited


def is_exact(output: str) -> bool:
    """Whether `decoded` comes from the generated tokens themselves."""
    return isinstance(output, Output) and output.known == EXACT
