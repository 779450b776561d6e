"""Edited models for other engines: a checkpoint, a LoRA adapter, or plain summed updates, from a ledger.

writing     an export and its check, from the arguments to the folder
edited      which model, which prefix of the operations
sums        all updates of one parameter as one, in the smallest exact form
checkpoint  the form hf: a checkpoint
adapter     the form peft: a LoRA adapter
deltas      the form deltas: plain summed updates
selfcheck   what was written is read back and must answer like the edited model
commands    how it is evaluated in other engines
card        what an export says about itself
"""

from lm_eval_edit.export.selfcheck import ExportError
from lm_eval_edit.export.writing import FORMS, check, export

__all__ = ["FORMS", "ExportError", "check", "export"]
