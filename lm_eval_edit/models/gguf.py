"""Models from GGUF files: transformers de-quantises them while it loads, and then holds floating-point weights.

It goes on calling such a model quantised, and refuses to save it. Its weights are what any checkpoint holds, so the
marks are taken off: it is edited, fingerprinted, exported and saved like one.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path

from transformers import PreTrainedModel

_MARKS = ("hf_quantizer", "quantization_method", "is_quantized")
_NOTED = "_lm_eval_edit_gguf_file"


def problems(pretrained: object, gguf_file: str) -> list[str]:
    """Why a GGUF file cannot be loaded, as sentences, before anything is."""
    found = []
    if not isinstance(pretrained, str):
        found.append(f"gguf_file={gguf_file}: goes with pretrained=FOLDER or a hub id, not with a model object")
    elif Path(pretrained).is_file():
        folder = Path(pretrained).parent
        found.append(f"pretrained={pretrained} is a file; give its folder: pretrained={folder},gguf_file={gguf_file}")
    elif Path(pretrained).is_dir() and not (Path(pretrained) / gguf_file).is_file():
        there = _files_in(pretrained)
        found.append(
            f"gguf_file={gguf_file}: no such file in {pretrained}"
            + (f"; it has {', '.join(there)}" if there else "; it has no GGUF file")
        )
    if util.find_spec("gguf") is None:
        found.append(
            f"gguf_file={gguf_file}: reading it needs the package gguf: pip install 'lm-eval-edit[gguf]' or gguf alone"
        )
    return found


def instead(pretrained: str) -> str:
    """What to give where a folder holds GGUF files and none was named, to follow another remedy; empty for others."""
    there = _files_in(pretrained)
    return f". It holds {', '.join(there)}: gguf_file={there[0]} loads that" if there else ""


def _files_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("*.gguf"))


def made_ordinary(model: PreTrainedModel, gguf_file: str) -> PreTrainedModel:
    """The same model without the marks of quantisation, noted as the file's.

    Args:
        model: As from_pretrained gave it; its weights are floating-point numbers.
        gguf_file: The file it came from.

    Raises:
        ValueError: a weight is no floating-point number.
    """
    strange = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if strange:
        raise ValueError(f"{gguf_file}: {strange[0]} is no floating-point number after loading")
    for name in _MARKS:
        vars(model).pop(name, None)
    for config in (model.config, model.config.get_text_config(decoder=True)):
        vars(config).pop("quantization_config", None)
        vars(config).pop("_is_quantized", None)
    setattr(model, _NOTED, gguf_file)
    return model


def file_of(model: PreTrainedModel) -> str | None:
    """The GGUF file that a model came from; None for others."""
    return getattr(model, _NOTED, None)
