"""What a run will take before it is started: prompts, tokens, FLOP, bytes, hours of a GPU.

work      the units: a model's shape, a device's speed, passes of the one on the other
measured  the speed of the device at hand, measured and kept
editing   what each method does
memory    what editing holds beside the model
run       a whole run: its edits and its evaluation
"""

from lm_eval_edit.cost.run import CHARACTERS_PER_TOKEN, Cost, TaskSize, estimate, evaluation, known_tasks

__all__ = ["CHARACTERS_PER_TOKEN", "Cost", "TaskSize", "estimate", "evaluation", "known_tasks"]
