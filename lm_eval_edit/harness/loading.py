"""What HFLM is given where the command line's own choice would be a bad one: a batch size, a device, its documents."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from lm_eval_edit import demo
from lm_eval_edit.models.devices import find_device

logger = logging.getLogger("lm_eval_edit")

DEMO_BATCH_SIZE = 32


def demo_batches(pretrained: str | PreTrainedModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """HFLM's options, with a batch size for the demo model where none was chosen.

    The command line always sends one, 1 unless told otherwise, and one prompt at a time takes the demo minutes.
    """
    options = dict(options)
    if isinstance(pretrained, str) and pretrained == demo.NAME and options.get("batch_size") in (None, 1, "1"):
        logger.info("the demo model is evaluated in batches of %d", DEMO_BATCH_SIZE)
        options["batch_size"] = DEMO_BATCH_SIZE
    return options


def device(given: str | None) -> str:
    """HFLM's option `device`. Its own default is a GPU whether there is one or not, and the command line always sends
    cuda:0, which the harness takes for no choice where there is none."""
    unsaid = given is None or (given == "cuda:0" and not torch.cuda.is_available())
    return find_device(None if unsaid else given)


def divide_documents(lm: HFLM, rank: int, size: int) -> None:
    """Let a model's documents be divided among the processes of a launch.

    The harness divides them only where it sees several GPUs, and counts processes on each machine anew, so that two
    machines would do the same documents twice.

    Args:
        lm: One made of a name; of a model object the harness gathers no results, and it is left alone.
        rank: Which of them this process is, from 0.
        size: How many there are.
    """
    if hasattr(lm, "accelerator"):
        lm._rank, lm._world_size = rank, size
