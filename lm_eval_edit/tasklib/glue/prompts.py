"""Document -> prompt, one function a task, and document -> target. The prompts are the published ones to the byte.

Missing blanks, a full stop for a question mark and CoLA's blank at the end are theirs and stay: a curve can be compared
with a published one only if the model read the same prompt.
"""

from __future__ import annotations

from typing import Any

from lm_eval_edit.tasklib.glue.catalogue import TASKS

Document = dict[str, Any]


def nli(doc: Document) -> str:
    """Natural language inference, on the records that Gu et al. took."""
    return f"{doc['sentence1']} entails the {doc['sentence2']} True or False? Answer:"


def sst(doc: Document) -> str:
    """Sentiment of a film review."""
    return f"Review :{doc['sentence']}\nSentiment :"


def cola(doc: Document) -> str:
    """Acceptability. The blank at the end is the published one."""
    return f"Is this sentence linguistically acceptable?\nSentence: {doc['sentence']}\nAnswer: "


def rte(doc: Document) -> str:
    """Natural language inference, on GLUE's validation set."""
    return f"{doc['sentence1']}\nquestion: {doc['sentence2']} True or False?\nanswer:"


def mmlu(doc: Document) -> str:
    """Knowledge, by the letter of an option."""
    a, b, c, d = doc["options"]
    return f"Question: {doc['question']}\n(A) {a}\n(B) {b}\n(C) {c}\n(D) {d}\nAnswer:"


def mrpc(doc: Document) -> str:
    """Paraphrases."""
    return (
        "Are the sentences paraphrases of each other.\n"
        f"Sentence 1: {doc['sentence1']}\nSentence 2: {doc['sentence2']}\nAnswer:"
    )


def dialogue(doc: Document) -> str:
    """The next utterance of a dialogue, by the letter of an option."""
    a, b, c, d = doc["options"]
    return (
        f"Q: Given the following: {doc['article']}\nWhich choice is correct?\n(A){a}\n(B){b}\n(C){c}\n(D){d}\nAnswer:"
    )


def sentiment(doc: Document) -> str:
    """Sentiment, with the prompt of Gu et al."""
    return (
        "For each snippet of text,label the sentiment of the text as positive or negative."
        f"The answer should be exact 'positive' or 'negative'. text: {doc['sentence']} answer:"
    )


def target(doc: Document) -> str:
    """The right answer in words."""
    return TASKS[doc["task"]].words[doc["gold"]]
