"""The eight tasks as one table: where each is found on the hub and in a folder, and what may be cut from its prompt."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_edit.tasklib.records import public
from lm_eval_edit.tasklib.records.sets import HubSet, RecordSet

GROUP = "edithurt_suite"
BY_LIKELIHOOD = "edithurt_suite_mc"  # the group that asks some of the tasks by likelihood
_SPLIT_NAMES = {"train": ("train",), "test": ("test",), "validation": ("validation", "dev")}


@dataclass(frozen=True)
class TaskSpec:
    """What is fixed about a task.

    Attributes:
        stem: Name of its hub-schema file, without ending.
        split: The split the paper evaluated.
        paper: Its file (or folder of files) inside the paper's `task-data/`.
        new_tokens: Tokens generated; the same number stands in the task's YAML as `max_gen_toks`.
        shortenable: Document fields that may lose their end, in the order in which they are cut.
        hub: Candidates on the hub, the best first.
    """

    stem: str
    split: str
    paper: str
    new_tokens: int
    shortenable: tuple[str, ...]
    hub: tuple[HubSet, ...]


# Data sets that another family reads too are in `records.public`. None could be loaded where this was written (no
# network), hence branches instead of commits; the commit that was really read is put into the results (see `hub.load`).
TASKS: dict[str, TaskSpec] = {
    "gsm8k": TaskSpec(
        stem="gsm8k",
        split="test",
        paper="test-reasoning.jsonl",
        new_tokens=5,
        shortenable=("question", "hint"),  # the hint ends with the answer, so the question goes first
        hub=(HubSet("openai/gsm8k", "test", ("question", "answer"), config="main"),),
    ),
    "rte": TaskSpec(
        stem="rte",
        split="train",
        paper="test-NLI.tsv",
        new_tokens=1,
        shortenable=("sentence1", "sentence2"),
        hub=public.RTE_TRAIN,
    ),
    "nq": TaskSpec(
        stem="nq_open",
        split="validation",
        paper="test-OpenDomainQA.jsonl",
        new_tokens=20,
        shortenable=("passage",),
        hub=(
            HubSet(
                "florin-hf/nq_open_gold",
                "test",
                ("question", "answers", "text"),
                rename={"answers": "answer", "text": "passages"},
                passages=True,
            ),
            HubSet("google-research-datasets/nq_open", "validation", ("question", "answer")),
        ),
    ),
    "boolq": TaskSpec(
        stem="boolq",
        split="validation",
        paper="test-ClosedDomainQA.jsonl",
        new_tokens=1,
        shortenable=("passage",),
        hub=(
            HubSet("aps/super_glue", "validation", ("question", "passage", "label"), config="boolq"),
            HubSet("google/boolq", "validation", ("question", "passage", "answer")),
        ),
    ),
    "mutual": TaskSpec(
        stem="mutual",
        split="validation",
        paper="test-dialogue",
        new_tokens=1,
        shortenable=("article",),
        hub=public.MUTUAL,
    ),
    "samsum": TaskSpec(
        stem="samsum",
        split="validation",
        paper="test-summarization.json",
        new_tokens=25,
        shortenable=("dialogue",),
        hub=(HubSet("knkarthick/samsum", "validation", ("dialogue", "summary")),),
    ),
    "conll2003": TaskSpec(
        stem="conll2003",
        split="validation",
        paper="test-NER.txt",
        new_tokens=10,
        shortenable=("sentence",),
        hub=(HubSet("lhoestq/conll2003", "validation", ("tokens", "ner_tags")),),
    ),
    "sst2": TaskSpec(
        stem="sst2",
        split="validation",
        paper="test-SentimentAnalysis.tsv",
        new_tokens=1,
        shortenable=("text",),
        hub=public.SST2,
    ),
}


def record_set(task: str) -> RecordSet:
    """Where the task's records are looked for."""
    spec = TASKS[task]
    stems = (spec.stem, *(f"{spec.stem}_{split}" for split in _SPLIT_NAMES[spec.split]))
    return RecordSet(task, stems, spec.split, spec.hub, spec.paper)
