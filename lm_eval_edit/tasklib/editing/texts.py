"""What is measured of a text that a model wrote: how varied its words are, and how near it is to reference texts.

The definitions are those of ROME and MEMIT as released (experiments/py/eval_utils_counterfact.py). nltk and
scikit-learn are the extra `generation`.
"""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval_edit.errors import UserError

EXTRA = {"nltk": "nltk", "sklearn": "scikit-learn"}
PUNKT, UNTRAINED = "punkt", "punkt_untrained"
WAYS = (PUNKT, UNTRAINED)

Words = Callable[[str], list[str]]


def missing_extra() -> str | None:
    """What of the extra is not installed, as a sentence; None where all of it is."""
    lacking = [package for module, package in EXTRA.items() if importlib.util.find_spec(module) is None]
    if not lacking:
        return None
    return (
        f"edithurt_counterfact_generation needs {' and '.join(lacking)}, not installed here: "
        "pip install 'lm-eval-edit[generation]'"
    )


def word_tokenizer(way: str) -> Words:
    """nltk's words of a text.

    Args:
        way: `punkt` is nltk.word_tokenize as the published code calls it, which first cuts a text into sentences by a
            model that nltk downloads; `punkt_untrained` cuts by the same algorithm without that model, so that nothing
            has to be there. The two differ after abbreviations: untrained, the full stop of "Dr." ends a sentence.

    Raises:
        UserError: another way, or the model is not there.
    """
    from nltk.tokenize import NLTKWordTokenizer, word_tokenize
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    if way == UNTRAINED:
        sentences, words = PunktSentenceTokenizer(), NLTKWordTokenizer()
        return lambda text: [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]
    if way != PUNKT:
        raise UserError(f"word_tokenizer={way}: want {' or '.join(WAYS)}")
    try:
        word_tokenize("A word.")
    except LookupError as error:
        raise UserError(
            "edithurt_counterfact_generation needs nltk's model of English sentences, which nltk.word_tokenize uses, "
            "and it is not there: python -m nltk.downloader punkt_tab (NLTK_DATA names the folder it lies in). Without "
            f"it, --metadata word_tokenizer={UNTRAINED} cuts sentences by the same algorithm without that model"
        ) from error
    return word_tokenize


def as_published(text: str) -> str:
    """A text, prompt included, as the released code reads it."""
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("<|endoftext|>", "")


def fluency(texts: Sequence[str], words: Words) -> float:
    """`ngram_entropy`: over texts, the mean of 2/3 H2 and 4/3 H3, in bits; H_n is the entropy of a text's n-grams.

    A text too short for an n-gram has the entropy 0 there.
    """
    return sum(_entropy(words(text)) for text in texts) / len(texts)


def _entropy(words: Sequence[str]) -> float:
    return (2 / 3 * _of_grams(words, 2) + 4 / 3 * _of_grams(words, 3)) / 2


def _of_grams(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    total = sum(counts.values())
    return math.fsum(-count / total * math.log2(count / total) for count in counts.values())


def consistency(texts: Sequence[str], reference: str, vectorizer: Any) -> float:
    """`reference_score`: the cosine of the TF-IDF vectors of all texts as one and of the reference texts as one.

    0 where one of them has no word that the vectorizer knows (the released code divides by zero there).
    """
    rows = vectorizer.transform([" ".join(texts), reference])  # of length 1 each, or 0
    return float(rows[0].multiply(rows[1]).sum())
