"""Where a model came from: kept with its edits, so that the same model can be loaded again to receive them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit import demo
from lm_eval_edit.demo.smollm2 import provenance
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.models import gguf
from lm_eval_edit.models.devices import find_device
from lm_eval_edit.models.dtypes import dtype_name


def describe_source(model: PreTrainedModel) -> dict[str, Any]:
    """`pretrained` (demo, smollm2, a folder, a hub id; None for a model that was not loaded), `revision` and `dtype`.

    For a model from a GGUF file also `gguf_file`, its name; for one that was unpacked from a package `unpacked_from`:
    package, version, file and its sha256. The revision is the hub's commit, so that a branch that moves on still gives
    the same model.
    """
    name = model.name_or_path
    unpacked_from = None
    if name and Path(name).is_dir():
        unpacked_from = provenance(name)
        name = demo.name_of(name) or str(Path(name).resolve())
    file = gguf.file_of(model)
    found = {
        "pretrained": name or None,
        "revision": getattr(model.config, "_commit_hash", None),
        "dtype": dtype_name(model.dtype),
    }
    found |= {} if file is None else {"gguf_file": file}
    return found if unpacked_from is None else found | {"unpacked_from": unpacked_from}


def load_source(
    pretrained: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer.

    Args:
        pretrained: demo, smollm2, a folder or a hub id.
        revision: Of the hub.
        dtype: A torch dtype's name, or auto.
        device: cpu, cuda:0, ..., or auto to spread the model over all GPUs; by default the first GPU if there is one.
        trust_remote_code: As in transformers.
        gguf_file: The GGUF file that holds the model, which is de-quantised.

    Raises:
        UserError: there is no such device or no such model, or the device does not hold it.
    """
    spread = {"device_map": "auto"} if device == "auto" else {}
    chosen = None if spread else find_device(device, also=" or auto")  # before minutes of loading
    source = demo.loadable(pretrained)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if not Path(source).is_dir():
        common["revision"] = revision or "main"
    if gguf_file is not None:
        if problems := gguf.problems(source, gguf_file):
            raise UserError("; ".join(problems))
        common["gguf_file"] = gguf_file
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **spread, **common)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    except (OSError, ValueError) as error:
        raise UserError(f"pretrained={pretrained}: cannot be loaded ({in_one_line(error)})") from None
    if gguf_file is not None:
        model = gguf.made_ordinary(model, gguf_file)
    if chosen is not None:
        module: nn.Module = model  # transformers' types do not know their own `to` as a method
        try:
            module.to(chosen)
        except RuntimeError as error:
            raise UserError(
                f"device={chosen} does not hold {pretrained} ({in_one_line(error)}); give device=auto, which spreads "
                f"it over all GPUs, or a smaller dtype"
            ) from None
    refuse_offloaded(model)
    return model, tokenizer


def refuse_offloaded(model: PreTrainedModel) -> None:
    """Raises UserError: a part of the model is not on a device but offloaded, where it cannot be edited."""
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:
        raise UserError(
            f"{len(offloaded)} parameters ({offloaded[0]}, ...) are offloaded to disk or CPU and cannot be edited; "
            f"use a device that holds the model, more devices between them (parallelize=True of edited_hf, --device "
            f"auto of export), or a smaller dtype"
        )
