"""The eight tasks as one table: where their records are, how they are answered, which are items in which order."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_edit.tasklib.records import public
from lm_eval_edit.tasklib.records.sets import HubSet, RecordSet

GROUP = "edithurt_glue"
GROUPED = ("nli", "sst", "cola", "rte", "mmlu", "mrpc")  # in the order in which the published scripts ask
PREFIX = "edithurt_glue_"

RESERVED = 10  # first items of a list, kept for examples in the prompt, which no published run has
PUBLISHED = 100  # items after them
NEW_TOKENS = 5
LETTERS = ("A", "B", "C", "D")

# How the records of a set become a list of items (`order`).
BALANCED, FROM_THE_END = "balanced", "from the end"


@dataclass(frozen=True)
class TaskSpec:
    """What is fixed about a task.

    Attributes:
        records: Where they are.
        words: The answers, in the order of their labels.
        asked: Labels in the order in which the published script looks for their words in an output.
        mark: What ends the prompt; the output begins after its last occurrence. None: after the prompt itself.
        order: How records become items.
        sizes: Numbers of records that the published list was made of.
        shortenable: Document fields that may lose their end, in the order in which they are cut.
        listed: What begins the names of the set's files, where it is a folder of one file a record.
        inverted: Whether the published script takes GLUE's label for that of the second word, though its 0 is that.
    """

    records: RecordSet
    words: tuple[str, ...]
    asked: tuple[int, ...]
    mark: str | None
    order: str
    sizes: tuple[int, ...]
    shortenable: tuple[str, ...]
    listed: str | None = None
    inverted: bool = False


def _glue(name: str, config: str, columns: tuple[str, ...], vague: str) -> RecordSet:
    hub = (HubSet(public.GLUE, "validation", columns, config=config),)
    return RecordSet(name, (f"{vague}_validation", f"{vague}_dev"), "validation", hub, vague=(vague,))


_POLAR = ("negative", "positive")
_YES = ("No", "Yes")
_TRUE = ("False", "True")

TASKS: dict[str, TaskSpec] = {
    "nli": TaskSpec(
        records=RecordSet(
            "nli", ("nli", "rte_train"), "train", public.RTE_TRAIN, paper="test-NLI.tsv", vague=("rte",)
        ),
        words=_TRUE, asked=(1, 0), mark="True or False? Answer:", order=FROM_THE_END, sizes=(2489, 2490),
        shortenable=("sentence1", "sentence2"),
    ),
    "sst": TaskSpec(
        records=_glue("sst", "sst2", ("sentence", "label"), "sst2"),
        words=_POLAR, asked=(1, 0), mark="Sentiment :", order=BALANCED, sizes=(872,),
        shortenable=("sentence",),
    ),
    "cola": TaskSpec(
        records=_glue("cola", "cola", ("sentence", "label"), "cola"),
        words=_YES, asked=(1, 0), mark="Answer:", order=BALANCED, sizes=(1043,),
        shortenable=("sentence",),
    ),
    "rte": TaskSpec(
        records=_glue("rte", "rte", public.PAIR, "rte"),
        words=_TRUE, asked=(0, 1), mark="answer:", order=BALANCED, sizes=(277,),
        shortenable=("sentence1", "sentence2"), inverted=True,
    ),
    "mmlu": TaskSpec(
        records=RecordSet(
            "mmlu", ("mmlu_validation", "mmlu_dev"), "validation",
            (HubSet("cais/mmlu", "validation", ("question", "subject", "choices", "answer"), config="all"),),
            vague=("mmlu",),
        ),
        words=LETTERS, asked=(0, 1, 2, 3), mark=None, order=BALANCED, sizes=(1531,),
        shortenable=("question",),
    ),
    "mrpc": TaskSpec(
        records=_glue("mrpc", "mrpc", public.PAIR, "mrpc"),
        words=_YES, asked=(1, 0), mark="Answer:", order=BALANCED, sizes=(408,),
        shortenable=("sentence1", "sentence2"),
    ),
    "dialogue": TaskSpec(
        records=RecordSet(
            "dialogue", ("mutual", "mutual_validation", "mutual_dev", "dialogue"), "validation", public.MUTUAL,
            paper="test-dialogue",
        ),
        words=LETTERS, asked=(0, 1, 2, 3), mark=None, order=FROM_THE_END, sizes=(886,),
        shortenable=("article",), listed="dev_",
    ),
    "sentiment": TaskSpec(
        records=RecordSet(
            "sentiment", ("sentiment_analysis", "sst2_validation", "sst2_dev", "sst2"), "validation", public.SST2,
            paper="test-SentimentAnalysis.tsv",
        ),
        words=_POLAR, asked=(1, 0), mark="answer:", order=FROM_THE_END, sizes=(872,),
        shortenable=("sentence",),
    ),
}  # fmt: skip
