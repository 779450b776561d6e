"""Where a model came from: kept with its edits, so that the same model can be loaded again to receive them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit import demo
from lm_eval_edit.errors import UserError


def describe_source(model: PreTrainedModel) -> dict[str, Any]:
    """`pretrained` (demo, a folder, a hub id; None for a model that was not loaded), `revision` and `dtype`.

    The revision is the hub's commit, so that a branch that moves on still gives the same model.
    """
    name = model.name_or_path
    if name and Path(name).is_dir():
        name = demo.NAME if Path(name).samefile(demo.CHECKPOINT) else str(Path(name).resolve())
    return {
        "pretrained": name or None,
        "revision": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def load_source(
    pretrained: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer.

    Args:
        pretrained: demo, a folder or a hub id.
        revision: Of the hub.
        dtype: A torch dtype's name, or auto.
        device: cpu, cuda:0, ..., or auto to spread the model over all GPUs; by default the first GPU if there is one.
        trust_remote_code: As in transformers.

    Raises:
        UserError: there is no such model, or no such device.
    """
    source = demo.loadable(pretrained)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not Path(source).is_dir():
        common["revision"] = revision or "main"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    spread = {"device_map": "auto"} if device == "auto" else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **spread, **common)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    except (OSError, ValueError) as error:
        raise UserError(f"pretrained={pretrained}: cannot be loaded ({str(error).splitlines()[0]})") from None
    try:
        return model if spread else model.to(device), tokenizer
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: {str(error).splitlines()[0]}; want cpu, cuda, cuda:0, ... or auto") from None
