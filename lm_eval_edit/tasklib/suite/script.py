"""The metric `script`: what the released scripts of Gu et al. (arXiv 2401.04700) count.

Every function takes the output as those scripts decode it, special tokens kept (`outputs.decoded`), and gives what the
document adds to the figure. They cut the text at marks that end a prompt, so an output that repeats its mark loses a
part here too. Named entities are counted in `ner.script_counts`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from lm_eval_edit.tasklib.suite.metrics import normalise

_DROPPED = len("<|endoftext|>")  # GPT-2's end of text, taken off whatever the text ends with
_FRAMES_PER_WORD = 2  # of the package `rouge`, whose longest common subsequence is found by recursion


def number_in(text: str, gold: str) -> bool:
    """GSM8K: the gold number, as written, is anywhere in the output."""
    return gold in text.split("Therefore, the answer (arabic numerals) is:")[0]


def true_false(text: str, right: str) -> float:
    """RTE: the right one of `true` and `false` is in the output, letter case ignored.

    With both in it the script counts the output twice, once as right and once as wrong; that is ½ here.
    """
    said = text.split("answer:")[-1].lower()
    found = [word for word in ("true", "false") if word in said]
    return (right in found) / max(len(found), 1)


def sentiment(text: str, right: str) -> bool:
    """SST-2: the right one of `positive` and `negative` is in the output, letter case ignored."""
    return right in text.split("answer:")[-1].lower()


def yes_no(text: str, right: str, edited: bool, whole: bool = False) -> bool:
    """BoolQ: for an edited model the right word is anywhere in the output, even inside another word.

    For the unedited model another script asks for ` yes` or ` no`, letter case ignored, and nothing else.

    Args:
        text: The output.
        right: `yes` or `no`.
        edited: Whether it is an edited model's.
        whole: The text is known to the space it begins with. Decoded without its prompt it may lack that space.
    """
    said = text.split("answer:")[0].lower()
    return right in said if edited else said == f" {right}" or (not whole and said == right)


def letter(text: str, gold: str) -> bool:
    """MuTual: the gold letter is anywhere in the output, unless `Chi` (of "Chioces") is there too."""
    said = text.split("the answer is")[-1]
    return gold in said and "Chi" not in said


def span_match(text: str, answers: list[str]) -> bool:
    """NQ: some run of words of the normalised output equals a normalised answer.

    An output without any word equals the answers that have none either. What the end-of-text token leaves is a word, or
    joins the last one: `Paris<|endoftext|>` is `parisendoftext`.

    The paper's script also searches the prompt, lets a hit leak into later questions and may count a question more
    than once; none of it is kept.
    """
    said = normalise(text.split("Answer:")[-1])
    golds = {normalise(answer) for answer in answers}
    return "" in golds if not said else any(f" {gold} " in f" {said} " for gold in golds if gold)


@lru_cache(maxsize=1)
def _rouge():
    from rouge import Rouge

    return Rouge()


def summary(text: str, reference: str) -> float:
    """SAMSum: mean of the F measures of ROUGE-1, -2 and -L of the package `rouge`, letter case kept.

    The last 13 characters go, whether they are `<|endoftext|>` or not. At most one character left scores 0; so do
    full stops alone, which the package refuses to score.
    """
    said = text.split("DR:")[-1][:-_DROPPED]
    if len(said) <= 1 or not said.strip(".") or not reference.strip("."):
        return 0.0
    with _recursion(_FRAMES_PER_WORD * (len(said.split()) + len(reference.split()))):
        scores = _rouge().get_scores(said, reference)[0]
    return sum(scores[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")) / 3


@contextmanager
def _recursion(frames: int) -> Iterator[None]:
    """Within this block at least so many more calls may be open than usual."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
