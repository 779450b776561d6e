"""The dtype that a model is loaded in, before it is, and what dtypes are called."""

from __future__ import annotations

from typing import Any

from lm_eval_edit.errors import UserError


def dtype_of(config: Any, given: Any) -> Any:
    """The torch dtype a model is loaded in: the one that is given, else its checkpoint's, which is float32 unsaid.

    Raises:
        UserError: `given` is no torch dtype.
    """
    import torch

    named = given if given not in (None, "auto") else getattr(config, "dtype", None)
    found = named if isinstance(named, torch.dtype) else getattr(torch, str(named or "float32"), None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"dtype={given} is no torch dtype; want auto, float32, bfloat16, float16 or float64")
    return found


def dtype_name(dtype: Any) -> str:
    """What results and commands call a torch dtype: float32."""
    return str(dtype).removeprefix("torch.")
