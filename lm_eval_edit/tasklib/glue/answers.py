"""Output -> label: as the published scripts read it (`script`), by likelihoods as they do (`likelier`), as it is meant
(`said`). None of them means an answer that cannot be read; the published scripts call it −1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from lm_eval_edit.tasklib.glue.catalogue import LETTERS, TASKS


def script(task: str, prompt: str, output: str) -> int | None:
    """The label that the published script finds: the first of the words it looks for, anywhere, even inside a word.

    Args:
        task: A task of the catalogue.
        prompt: The document's prompt: the scripts decode the whole text, and cut it after the last mark in it.
        output: What the model generated after it.
    """
    spec = TASKS[task]
    if spec.mark is None:
        text = output.lower()  # of a letter they want the line to end behind it, which five tokens may not show
        return next((label for label in spec.asked if f"{spec.words[label].lower()}\n" in text), None)
    text = (prompt + output).split(spec.mark)[-1].lower()
    return next((label for label in spec.asked if spec.words[label].lower() in text), None)


def said(task: str, output: str) -> int | None:
    """The label whose word comes first in the output, as a word of its own: of letters capitals only."""
    words = TASKS[task].words
    found = _pattern(words).search(output)
    return None if found is None else [word.lower() for word in words].index(found[0].lower())


@lru_cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """`_` counts as a mark around a word, not as a part of it: Markdown sets words in it."""
    pattern = rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])"
    return re.compile(pattern) if words == LETTERS else re.compile(pattern, re.IGNORECASE)


def likelier(per_token: Sequence[float]) -> int | None:
    """The label whose word has the largest mean log-probability per token.

    Of two, a tie is the first label's; of four, nobody's.

    Args:
        per_token: Of each label's word.
    """
    if len(per_token) == 2:
        return int(per_token[1] > per_token[0])
    best = [
        label
        for label, value in enumerate(per_token)
        if all(value > other for place, other in enumerate(per_token) if place != label)
    ]
    return best[0] if best else None
