"""A schedule of edits on one model: computed, applied, checked, kept, continued.

schedule   which facts, in which order, how many at once
scheduled  the facts of a run, decided once for the editor and for the tasks that ask about them
run        compute, apply, guard, record; resume where an earlier run stopped
answers    what a model answers to a fact's prompt, teacher-forced
ledger     the operations as files: replay, restore, any prefix
states     requests that want the weights after the first k operations
processes  data parallel: one process edits, all get the same weights
"""
