"""A model that carries an adapter of peft's for as long as that is trained."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from unittest import mock

import peft
from torch import nn
from transformers import PreTrainedModel


@contextlib.contextmanager
def adapted_by(model: PreTrainedModel, config: peft.PeftConfig, name: str) -> Iterator[peft.PeftModel]:
    """Within the block `model` carries an adapter; afterwards it has its own modules again, untouched.

    Args:
        model: The model.
        config: Of the adapter, with the whole paths of linear maps as its target modules.
        name: The adapter's.
    """
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    with warnings.catch_warnings(), _names_as_they_stand():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # peft finds out and sets it right
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about what peft asks it
        adapted = peft.get_peft_model(model, config, adapter_name=name)
    try:
        for module in adapted.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                dropout = module.lora_dropout
                assert isinstance(dropout, nn.ModuleDict), "peft keeps each adapter's dropout in one"
                dropout.train()
        yield adapted
    finally:
        adapted.unload()
        vars(model).pop("peft_config", None)  # older releases of peft leave it there
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def _names_as_they_stand() -> contextlib.AbstractContextManager[object]:
    """Within the block peft adapts the modules that it is told.

    Newer releases take `....down_proj` of some mixtures for a list of experts in a checkpoint of transformers 4, and
    adapt the tensor that holds all routed experts in place of the linear map of that path, a shared expert's or that of
    a dense block.
    """
    try:
        conversion = importlib.import_module("peft.utils.transformers_weight_conversion")
    except ImportError:  # an older release
        return contextlib.nullcontext()
    return mock.patch.object(conversion, "convert_peft_config_for_transformers", lambda *given, **named: None)
