"""MEND (Mitchell et al. 2022, arXiv 2110.11309): the editor, its hypernetwork, its archives, its training."""

from lm_eval_edit.editors.mend.editor import Mend, MendOptions

__all__ = ["Mend", "MendOptions"]
