"""The edited model as a checkpoint of its own, which every engine loads that loads the unedited one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.errors import UserError
from lm_eval_edit.export.selfcheck import ExportError, last_logits
from lm_eval_edit.model_source import load_source
from lm_eval_edit.weights import parameter_sums


def write_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights as they stand, configuration, generation configuration and tokenizer.

    Args:
        model: Edited. Weights that are tied are written once; every weight keeps its dtype.
        tokenizer: Its tokenizer.
        folder: An existing folder.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def reloaded_logits(
    folder: Path,
    wanted: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    device: str,
    trust_remote_code: bool = False,
) -> Tensor:
    """Logits of a checkpoint read from disk, whose every weight is compared first, bit for bit.

    Args:
        folder: Where it lies.
        wanted: `parameter_sums` of the model that was written.
        tokenizer: Of the unedited model: the prompts' tokens must be the same.
        prompts: See `last_logits`.
        device: auto spreads the model over all GPUs.
        trust_remote_code: As in transformers.

    Raises:
        ExportError: it cannot be loaded, or a weight is not the one that was written; each is named.
    """
    try:
        model, _ = load_source(str(folder), device=device, trust_remote_code=trust_remote_code)
    except UserError as error:
        raise ExportError(str(error)) from None
    found = parameter_sums(model)
    different = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if different:
        raise ExportError(
            f"it holds other weights than the edited model: {', '.join(different[:5])}"
            + (f" and {len(different) - 5} more" if len(different) > 5 else "")
        )
    return last_logits(model, tokenizer, prompts)
