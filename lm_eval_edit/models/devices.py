"""Which device a command computes on: the one that is asked for, if it is there; else what is there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lm_eval_edit.errors import UserError, in_one_line


def default_device() -> str:
    """A GPU where torch can use one, else the CPU: the harness's own rule where no device is named."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's tokens go: the device of its input embeddings, also where the model is split over several."""
    return weight_of(model.get_input_embeddings()).device


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear map or of an embedding, known to be a tensor: torch's types say so of no submodule's."""
    weight = module.weight
    assert isinstance(weight, Tensor), f"{type(module).__name__} keeps no weight: it is no linear map and no embedding"
    return weight


def find_device(given: str | None, option: str = "device=", also: str = "") -> str:
    """The device to compute on.

    Args:
        given: As torch names it; None for the default.
        option: What the user wrote before it, for the error.
        also: Other words that the option takes, for the error.

    Raises:
        UserError: there is no such device. The harness would take another in silence, or fail with a traceback.
    """
    if given is None:
        return default_device()
    try:
        torch.empty(0, device=given)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"{option}{given}: {in_one_line(error)}; want cpu, cuda, cuda:0, ...{also}, there being "
            f"{torch.cuda.device_count()} CUDA devices"
        ) from None
    return str(given)
