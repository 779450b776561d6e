"""Records of the eight tasks: one of each written by hand, with its prompt and target, and the first real ones."""

from __future__ import annotations

import json
from pathlib import Path

from lm_eval_edit.tasklib.records import layouts
from lm_eval_edit.tasklib.suite.catalogue import TASKS, record_set

#: Task -> (record, prompt to the byte, target).
CASES = {
    "gsm8k": (
        {"question": "How many  bolts?", "answer": "2/2=<<2/2=1>>1\nSo 2+1=<<2+1=3>>3 bolts\n#### 1,003"},
        "Q: How many  bolts? A:Let's think step by step. 2/2=<<2/2=1>>1\nSo 2+1=<<2+1=3>>3 bolts\n"
        " Therefore, the answer (arabic numerals) is:",
        "1,003",
    ),
    "rte": (
        {"sentence1": 'He said "no".', "sentence2": "He spoke.", "label": 0},
        'He said "no". entails the He spoke.. True or False? answer:',
        "True",
    ),
    "nq": (
        {"question": "who wrote it?", "answer": ["Bob", "B. Russell"], "passages": ["\n\nBob did.", "unused"]},
        "Refer to the passage below and answer the following question. Passage: \n\nBob did. Question: who wrote it?",
        ["Bob", "B. Russell"],
    ),
    "boolq": (
        {"question": "is it so", "passage": "It is.", "answer": False},
        "Please answer the given question based on the passage. The answer should be exact 'yes' or 'no'. "
        "passage: It is. question: is it so. answer:",
        "no",
    ),
    "mutual": (
        {"article": "m : hi .", "options": ["f : a .", "f : b .", "f : c .", "f : d ."], "answers": "C", "id": "dev_1"},
        "Q: m : hi . Which choice is correct? Answer Chioces: (A)f : a .(B)f : b .(C)f : c .(D)f : d . "
        "A: Among A through D, the answer is",
        "C",
    ),
    "samsum": (
        {"dialogue": "A: Hi\r\nB: Hi ", "summary": "They greet.", "id": "1"},
        "A: Hi\r\nB: Hi \nTL;DR:",
        "They greet.",
    ),
    "sst2": (
        {"sentence": "a charming journey . ", "label": 1},
        "For each snippet of text,label the sentiment of the text as positive or negative.The answer should be exact "
        "'positive' or 'negative'. text: a charming journey .  answer:",
        "positive",
    ),
}

#: Task -> a record.
RECORDS = {task: record for task, (record, _, _) in CASES.items()} | {
    "conll2003": {"tokens": ["Berg", "spoke"], "ner_tags": [1, 0]}
}


def sample_of(data: Path, folder: Path, n: int) -> Path:
    """The first n records of each real data set, as JSONL in `folder`."""
    for task, spec in TASKS.items():
        found = layouts.locate(record_set(task), data)
        if found.layout == "jsonl":
            lines = found.path.read_text(encoding="utf-8").splitlines(keepends=True)[:n]
        else:
            lines = [json.dumps(record) + "\n" for _, record in layouts.read(found)[:n]]
        (folder / f"{spec.stem}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
