"""The eight tasks as one table: where each is found on the hub and in a folder, and what may be cut from its prompt."""

from __future__ import annotations

from dataclasses import dataclass, field

GROUP = "edithurt_suite"
BY_LIKELIHOOD = "edithurt_suite_mc"  # the group that asks some of the tasks by likelihood


@dataclass(frozen=True)
class HubSet:
    """One data set on the Hugging Face hub.

    Attributes:
        path, config, split, revision: As `datasets.load_dataset` takes them.
        columns: Columns that must be there after loading.
        rename: Column on the hub -> field of the record schema in `documents`.
        passages: The set carries the passages of open-domain QA. Another set in its place changes the *prompt*, so a
            missing network must not lead to it silently.
    """

    path: str
    split: str
    columns: tuple[str, ...]
    config: str | None = None
    revision: str = "main"
    rename: dict[str, str] = field(default_factory=dict)
    passages: bool = False


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


# The only place that names hub data sets. None of them could be loaded where this was written (no network), hence
# branches instead of commits; the commit that was really read is put into the results (see `hub.load`).
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
        hub=(HubSet("nyu-mll/glue", "train", ("sentence1", "sentence2", "label"), config="rte"),),
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
        hub=(
            HubSet("lighteval/mutual_harness", "validation", ("article", "options", "answers"), config="mutual"),
            HubSet("tasksource/mutual", "validation", ("article", "options", "answers")),
        ),
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
        hub=(HubSet("nyu-mll/glue", "validation", ("sentence", "label"), config="sst2"),),
    ),
}
