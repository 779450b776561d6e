"""A schedule of edits on one model: computed, applied, checked, kept, continued.

schedule        which facts, in which order, how many at once
scheduled       the facts of a run, decided once for the editor and for the tasks that ask about them
chosen          the editor that a run's options choose, told without its weights
opened          every file of a run, opened and checked before a model loads
surroundings    what stands around a run's prompts: context templates, the chat template
prompt_lengths  prompts that a model cannot read
needed_moments  the second moments that an editor needs, or computed
source          where a model came from
continuing      edits that arrive over time go on with a run
run             compute, apply, guard, record; resume where an earlier run stopped
routing         which experts an operation's prompts go to, before it and after
answers         what a model answers to a fact's prompt, teacher-forced
guards          what may not pass unseen: no change, values that are not finite
success         how many edits took
header          what the operations of a ledger belong to, as a file
operations      one operation as two files
ledger          the operations as files: replay, restore, any prefix
states          requests that want the weights after the first k operations
processes       data parallel: one process edits, all get the same weights
record          the `edit` block of the results
"""
