"""MEND (Mitchell et al. 2022, arXiv 2110.11309).

editor             a trained hypernetwork turns the gradient of the wanted answer into an edit
network            the hypernetwork
batch              batches of prompts with answers, and the gradient factors of their loss
archive            trained hypernetworks on disk
training           how one is trained
training_settings  the options of `lm-eval-edit train mend`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_edit.editors.mend.editor import Mend, MendOptions

__all__ = ["Mend", "MendOptions"]


def __getattr__(name: str) -> Any:
    # On first use: the command line reads `training_settings` for its help, and must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lm_eval_edit.editors.mend import editor

    return getattr(editor, name)
