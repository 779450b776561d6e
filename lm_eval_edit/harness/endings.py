"""What a model's generated tokens tell that the harness's text does not: whether, and with what, an output ended.

HFLM generates a batch, decodes each row without its special tokens and hands every text to its cache hook. A `Listener`
stands in for that hook during one call of `generate_until` and sees the rows of each batch before: the texts come in
the order of the rows, so each gets what its row tells.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lm_eval_edit.harness.outputs import EXACT, Output

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from torch import Tensor

# A new token may be decoded differently with nothing before it (SentencePiece drops a leading space), so the end of the
# prompt is decoded with it. More of the prompt would change nothing.
TOKENS_BEFORE = 16


class Listener:
    """Hears the rows and the texts of one call of `generate_until`.

    Args:
        lm: An HFLM; its tokenizer and its end-of-text tokens are asked.
        edited: Whether its weights carry edits.
        ends: Its end-of-text tokens beside the tokenizer's own; None for those of its model's generation configuration.
        key: (request, text) -> what the text is known by again.
    """

    def __init__(
        self,
        lm: Any,
        edited: bool,
        ends: Collection[int] | None = None,
        key: Callable[[Sequence[Any], str], bytes] | None = None,
    ):
        self._tokenizer, self._edited, self._hook, self._key = lm.tokenizer, edited, lm.cache_hook, key or _key
        if ends is None:
            found = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
            ends = found if isinstance(found, list | tuple) else () if found is None else (found,)
        self._ends = {*ends, lm.eot_token_id}
        self._rows: deque[tuple[list[int], list[int]]] = deque()
        self._heard: dict[bytes, Output] = {}

    @property
    def dbdict(self) -> Any:
        """The response cache's table, as the hook has it."""
        return self._hook.dbdict

    def hear(self, context: Tensor, mask: Tensor | None, rows: Tensor) -> None:
        """One batch.

        Args:
            context: (B, C) prompts, padded on the left.
            mask: (B, C) 0 where padded; None for no padding.
            rows: (B, C + N) prompts and what was generated; a row that ended is filled up with padding.
        """
        length = context.shape[1]
        shown = [length] * len(rows) if mask is None else mask.sum(dim=1).tolist()
        self.hear_rows(
            [
                (row[length - n : length][-TOKENS_BEFORE:], row[length:])
                for row, n in zip(rows.tolist(), shown, strict=True)
            ]
        )

    def hear_rows(self, rows: Sequence[tuple[list[int], list[int]]]) -> None:
        """One batch as (the prompt's last tokens, what was generated), in the order in which its texts will come."""
        self._rows = deque(rows)

    def add_partial(self, attr: str, request: Sequence[Any], text: str) -> None:
        """As the harness's `CacheHook`: the text of the next row, to be cached."""
        output = self._output(text, *self._rows.popleft()) if self._rows else text
        if isinstance(output, Output):
            self._heard.setdefault(self._key(request, text), output)
        self._hook.add_partial(attr, request, output)

    def outputs(self, requests: Sequence[Instance], texts: Sequence[str]) -> list[str]:
        """The texts in the order of the requests, each with what was heard of it."""
        return [self._heard.get(self._key(each.args, text), text) for each, text in zip(requests, texts, strict=True)]

    def _output(self, text: str, before: list[int], new: list[int]) -> Output:
        end = next((i for i, token in enumerate(new) if token in self._ends), None)
        if self._tokenizer.decode(new[:end], skip_special_tokens=True) != text:  # a stop string cut it
            return Output(text, text, False, EXACT, self._edited)
        said = new if end is None else new[: end + 1]
        prompt, whole = (self._tokenizer.decode(ids, skip_special_tokens=False) for ids in (before, before + said))
        decoded = whole[len(prompt) :] if whole.startswith(prompt) else self._tokenizer.decode(said)
        return Output(text, decoded, end is not None, EXACT, self._edited)


def _key(request: Sequence[Any], text: str) -> bytes:
    content = json.dumps([request[0], request[1], text], sort_keys=True, default=str)
    return hashlib.sha256(content.encode(errors="surrogatepass")).digest()


@contextmanager
def listening(lm: Any, edited: bool, **more: Any) -> Iterator[Listener]:
    """Within this block the model's cache hook is a `Listener`, which passes everything on to the hook.

    Args:
        more: As for `Listener`.
    """
    hook = lm.cache_hook
    lm.cache_hook = listener = Listener(lm, edited, **more)
    try:
        yield listener
    finally:
        lm.cache_hook = hook
