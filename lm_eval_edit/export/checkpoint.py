"""The edited model as a checkpoint of its own, which every engine loads that loads the unedited one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm_eval_edit.edits.source import load_source
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.export.edited import touched
from lm_eval_edit.export.selfcheck import ExportError, last_logits
from lm_eval_edit.weights.fingerprint import parameter_hashes


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
    wanted: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    device: str,
    trust_remote_code: bool = False,
) -> Tensor:
    """Logits of a checkpoint read from disk, whose tokens and weights are compared first.

    Args:
        folder: Where it lies.
        wanted: `parameter_hashes` of the model that was written, which every weight must be, bit for bit; None where
            the edited model has other last bits here than where the checkpoint was written.
        tokenizer: Of the unedited model: the checkpoint's own must give the prompts the same tokens.
        prompts: See `last_logits`.
        device: auto spreads the model over all GPUs.
        trust_remote_code: As in transformers.

    Raises:
        ExportError: it cannot be loaded, its tokenizer is another one, or a weight is not the one that was written.
    """
    try:
        model, its_tokenizer = load_source(str(folder), device=device, trust_remote_code=trust_remote_code)
    except UserError as error:
        raise ExportError(str(error)) from None
    except Exception as error:  # damaged files raise whatever their library likes, a bare Exception for one
        raise ExportError(f"it cannot be loaded ({in_one_line(error)})") from error
    for prompt in prompts:
        tokens, its_tokens = tokenizer.encode(prompt), its_tokenizer.encode(prompt)
        if tokens != its_tokens:
            raise ExportError(
                f"its tokenizer makes {its_tokens[:20]} of {prompt!r}, the unedited model's {tokens[:20]}"
            )
    if wanted is not None:
        found = parameter_hashes(model)
        different = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if different:
            raise ExportError(f"it holds other weights than the edited model: {touched(different)}")
    return last_logits(model, tokenizer, prompts)
