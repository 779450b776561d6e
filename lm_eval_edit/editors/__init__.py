"""Knowledge-editing methods, one file or folder each, reading like their papers.

rome             Meng et al. 2022: one fact, one rank-one update
r_rome           Gupta et al. 2024: ROME with one key throughout
memit            Meng et al. 2023: many facts at once, over several layers
memit_seq        the same, with the keys of all earlier batches
encore           Gupta et al. 2025: restrained norms, and targets that stop early
emmet            Gupta et al. 2024: ROME's constraint for a batch
alphaedit        Fang et al. 2025: MEMIT's update, projected
betaedit         the same, with ordinary text in its solve
ultraedit        a closed form from one forward and one backward pass
prune            Ma et al. 2025: the large singular values of the sum restrained
rect             Gu et al. 2024: the relatively largest entries of another's update
sphere           another's update, kept away from the principal directions of the weights
random           the control: a random update of the same size
ft               fine-tuning of one matrix
lora             a low-rank adapter, written into the weights
kn               Dai et al. 2022: knowledge neurons
mend             Mitchell et al. 2022: a trained hypernetwork
easyeditor       methods of an installed EasyEdit
base             what an editor is, and how one is found by name
hyperparameters  preset, then file, then command line; every value checked
mixtures         which of a mixture's matrices a method edits, and what is said where it cannot
named_by_data    data may name an editor, but never choose what code is imported
templates        context templates, sampled from the model
_shared          the mathematics that methods have in common
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_eval_edit.editors.base import EditContext, Editor, EditResult, editor_names, find_editor, option
    from lm_eval_edit.editors.templates import TemplatePlan

__all__ = ["EditContext", "EditResult", "Editor", "TemplatePlan", "editor_names", "find_editor", "option"]


def __getattr__(name: str) -> Any:
    # On first use: the command line reads what a room below says about options, and must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'templates' if name == 'TemplatePlan' else 'base'}"), name)
