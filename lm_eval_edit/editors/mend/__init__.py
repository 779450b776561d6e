"""MEND (Mitchell et al. 2022, arXiv 2110.11309).

editor             a trained hypernetwork turns the gradient of the wanted answer into an edit
network            the hypernetwork
batch              batches of prompts with answers, and the gradient factors of their loss
archive            trained hypernetworks on disk
training           how one is trained
training_settings  the options of `lm-eval-edit train mend`
"""

from lm_eval_edit.editors.mend.editor import Mend, MendOptions

__all__ = ["Mend", "MendOptions"]
