"""The public sets on the hub that several task families read.

None of them could be loaded where this was written (no network), hence branches instead of commits; the commit that was
really read is put into the results (see `hub.load`).
"""

from __future__ import annotations

from lm_eval_edit.tasklib.records.sets import HubSet

GLUE = "nyu-mll/glue"
PAIR = ("sentence1", "sentence2", "label")

RTE_TRAIN = (HubSet(GLUE, "train", PAIR, config="rte"),)
SST2 = (HubSet(GLUE, "validation", ("sentence", "label"), config="sst2"),)
MUTUAL = (
    HubSet("lighteval/mutual_harness", "validation", ("article", "options", "answers"), config="mutual"),
    HubSet("tasksource/mutual", "validation", ("article", "options", "answers")),
)
