"""Weights that are no floating-point numbers in memory (GPTQ, AWQ, bitsandbytes, fp8): they cannot hold an edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from lm_eval_edit.errors import UserError

REMEDY = (
    "give the unquantised one it was made from, or a GGUF file of it (pretrained=FOLDER,gguf_file=NAME), which is "
    "de-quantised"
)


def method_of(config: PretrainedConfig) -> str | None:
    """What a checkpoint's configuration says it is quantised with, " (gptq)" or nothing; None where it is not."""
    given: Any = getattr(config, "quantization_config", None)
    if not given:
        return None
    method = given.get("quant_method") if isinstance(given, Mapping) else getattr(given, "quant_method", None)
    return f" ({getattr(method, 'value', method)})" if method else ""


def refuse(model: PreTrainedModel) -> None:
    """Refuse a model whose weights in memory cannot hold an edit, whatever its configuration says.

    Raises:
        UserError: naming the first parameter that is no floating-point number, or one of a byte.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() == 1:
            kind = str(parameter.dtype).removeprefix("torch.")
            method = method_of(model.config) or ""
            raise UserError(
                f"{name} holds {kind} numbers: the model is quantised{method} and cannot hold an edit; {REMEDY}"
            )
