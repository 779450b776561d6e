"""What the released scripts of Gu et al. (github.com/JasonForJoy/Model-Editing-Hurt) count for one document.

Written from a reading of them, apart from the package: each function takes the text after the prompt as they decode it,
with special tokens, and gives (counted right, counted) of that document. Two things of the NQ script are left out, as
the package says it does: the search of the prompt, and hits that leak into other questions or count twice.
"""

from __future__ import annotations

import re
import string


def reasoning(text, answer):
    """`answer`: the whole gold text of the record."""
    return int(answer.split("#### ")[1] in text), 1


def nli(text, label):
    """`label`: as in the file."""
    low = text.split("answer:")[-1].lower()
    true, false = "true" in low, "false" in low
    right = false if "not_entailment" in label.lower() else true
    return int(right), max(true + false, 1)  # an output with neither is one of the others


def _squad(text):
    kept = "".join(ch for ch in text.lower() if ch not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def open_qa(text, answers):
    words = _squad(text.split("Answer:")[-1].replace("\n", " ")).split(" ")
    golds = [_squad(answer) for answer in answers]
    runs = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return int(any(run in golds for run in runs)), 1


def closed_qa_after(text, answer):
    """The script for edited models. `answer`: bool."""
    low = text.split("answer:")[0].lower()
    if "yes" in low and answer:
        return 1, 1
    return int("no" in low and not answer), 1


def closed_qa_before(text, answer):
    """The script for the unedited model."""
    low = text.split("answer:")[0].lower()
    return int(low == (" yes" if answer else " no")), 1


def dialogue(text, answer):
    said = text.split("the answer is")[-1]
    if "Chi" in said or not any(each in said for each in "ABCD"):
        return 0, 1
    return int(answer in said), 1


def summarization(text, summary):
    """The mean of three F measures. The package `rouge` cannot score full stops alone; theirs stops there."""
    from rouge import Rouge

    said = text.split("DR:")[-1][0:-13]
    if len(said) <= 1:
        return 0, 1
    scores = Rouge().get_scores(said, summary)[0]
    return sum(scores[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")) / 3, 1


def entities(text, tokens, tags, entity_type):
    said, mentions, k = text.split("Entity:")[0], [], 0
    while k < len(tags):
        if tags[k] == f"B-{entity_type}":
            stop = k
            while stop < len(tags) - 1 and tags[stop] != "O":
                stop += 1
            mentions.append(" ".join(tokens[k:stop]))
            k = stop
        k += 1
    if not mentions:
        if not said:
            return 1, 1
        return 0, int(entity_type == "MISC")
    return sum(mention in said for mention in mentions), len(mentions)


def sentiment(text, label):
    """`label`: 1 or 0."""
    return int(("positive" if label else "negative") in text.split("answer:")[-1].lower()), 1


def of(task, doc, text, edited):
    """(right, counted) of one of the suite's documents, `edited` or not."""
    if task == "gsm8k":
        return reasoning(text, f"{doc['hint']}#### {doc['answer']}")
    if task == "rte":
        return nli(text, "entailment" if doc["entailment"] else "not_entailment")
    if task == "nq":
        return open_qa(text, doc["answers"])
    if task == "boolq":
        return (closed_qa_after if edited else closed_qa_before)(text, doc["answer"])
    if task == "mutual":
        return dialogue(text, doc["answer"])
    if task == "samsum":
        return summarization(text, doc["summary"])
    if task == "sst2":
        return sentiment(text, int(doc["positive"]))
    return entities(text, doc["tokens"], doc["tags"], doc["entity_type"])
