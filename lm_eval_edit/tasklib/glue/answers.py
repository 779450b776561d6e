"""Output -> label: as the published scripts read it (`script`), by likelihoods as they do (`likelier`), as it is meant
(`said`). None of them means an answer that cannot be read; the published scripts call it −1.
"""

from __future__ import annotations

import math
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
    """`_` counts as a mark around a word, not as a part of it: Markdown sets words in it.

    Case is ASCII's: Unicode's would take "ſ" for an "s", and find what in lower case is none of the words.
    """
    case = "" if words == LETTERS else "ai"
    return re.compile(rf"(?<![^\W_])(?{case}:{'|'.join(words)})(?![^\W_])")


def likelier(per_token: Sequence[float]) -> int | None:
    """The label whose word has the largest probability per token, exp of its mean log-probability.

    Of two, a tie is the first label's; of four, nobody's. As published, probabilities are compared and not their
    logarithms: two that are too small for a number tie.

    Args:
        per_token: Of each label's word.
    """
    probabilities = [math.exp(value) for value in per_token]
    if len(probabilities) == 2:
        return int(probabilities[1] > probabilities[0])
    best = [
        label
        for label, value in enumerate(probabilities)
        if all(value > other for place, other in enumerate(probabilities) if place != label)
    ]
    return best[0] if best else None
