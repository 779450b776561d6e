"""Document -> prompt and document -> target, one function of each for every task.

The prompts are those of Gu et al. (arXiv 2401.04700) to the byte. Missing spaces, "Chioces" and the other oddities are
theirs and stay: a curve can be compared with a published one only if the model read the same prompt.
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

# CoNLL-2003 type -> its word in the prompt, in the order of the four documents of a sentence.
ENTITY_NAMES = {"PER": "Person", "LOC": "Location", "ORG": "Organization", "MISC": "Miscellaneous"}


def gsm8k(doc: Document) -> str:
    """Reasoning with the gold rationale as a hint; only the number is left to say."""
    return f"Q: {doc['question']} A:Let's think step by step. {doc['hint']} Therefore, the answer (arabic numerals) is:"


def rte(doc: Document) -> str:
    """Natural language inference."""
    return f"{doc['sentence1']} entails the {doc['sentence2']}. True or False? answer:"


def nq(doc: Document) -> str:
    """Open-domain QA with one passage; the closed-book form where the source has no passage."""
    if doc["passage"] is None:
        return f"Question: {doc['question']} Answer:"
    return (
        "Refer to the passage below and answer the following question. "
        f"Passage: {doc['passage']} Question: {doc['question']}"
    )


def boolq(doc: Document) -> str:
    """Closed-domain QA."""
    return (
        "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. "
        f"passage: {doc['passage']} question: {doc['question']}. answer:"
    )


def mutual(doc: Document) -> str:
    """Choice of the next utterance of a dialogue by its letter."""
    a, b, c, d = doc["options"]
    return (
        f"Q: {doc['article']} Which choice is correct? Answer Chioces: (A){a}(B){b}(C){c}(D){d} "
        "A: Among A through D, the answer is"
    )


def samsum(doc: Document) -> str:
    """Dialogue summarization. Line ends inside the dialogue (often CR LF) stay as they are."""
    return f"{doc['dialogue']}\nTL;DR:"


def conll2003(doc: Document) -> str:
    """Named entities of one type in one sentence."""
    name = ENTITY_NAMES[doc["entity_type"]]
    return f"Please identify {name} Entity from the given text. Text: {doc['sentence']} Entity:"


def sst2(doc: Document) -> str:
    """Sentiment."""
    return (
        "For each snippet of text,label the sentiment of the text as positive or negative."
        f"The answer should be exact 'positive' or 'negative'. text: {doc['text']} answer:"
    )


def sentence_text(tokens: list[str]) -> str:
    """Tokens joined by spaces, none before `,` and `.`.

    The first character of the joined text is dropped without a look. It is the space of the first token, except where
    a sentence begins with `,` or `.`: that mark is lost, as in the paper's script.
    """
    return "".join(token if token in (",", ".") else f" {token}" for token in tokens)[1:]


def gsm8k_target(doc: Document) -> str:
    """The gold number as it is written in the data."""
    return doc["answer"]


def rte_target(doc: Document) -> str:
    """`True` for entailment."""
    return "True" if doc["entailment"] else "False"


def nq_target(doc: Document) -> list[str]:
    """Every accepted answer."""
    return doc["answers"]


def boolq_target(doc: Document) -> str:
    """`yes` or `no`."""
    return "yes" if doc["answer"] else "no"


def mutual_target(doc: Document) -> str:
    """The letter of the right option."""
    return doc["answer"]


def samsum_target(doc: Document) -> str:
    """The reference summary."""
    return doc["summary"]


def conll2003_target(doc: Document) -> str:
    """The gold mentions of the asked type, separated by commas; empty where there is none."""
    from lm_eval_edit.tasklib.suite.ner import spans

    return ", ".join(" ".join(doc["tokens"][start:end]) for start, end in spans(doc["tags"], doc["entity_type"]))


def sst2_target(doc: Document) -> str:
    """`positive` or `negative`."""
    return "positive" if doc["positive"] else "negative"
