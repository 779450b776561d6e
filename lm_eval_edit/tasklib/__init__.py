"""What the YAML files in `tasks/` call: where documents come from, how they are prompted, how outputs are scored.

suite       the eight tasks of Gu et al.
editing     the tasks about the run's own facts
glue        GLUE, MMLU and two more, as papers on sequential editing ask them
perplexity  the perplexity of a fixed text

and what these families share:

records     the records of public data sets: in a folder, on the hub, of the demo
arguments   what a run's arguments say about its model
measures    what a task measures, ability or edit quality; its headline metric and its level of chance
fitted      tasks whose prompts fit the model with what a run puts around them
shorten     cut passages and dialogues so that no prompt loses its instruction
bootstrap   the standard error of a figure that is no mean

before_loading  what the tasks of a run need, looked for before any model loads: it knows all the families

A family imports nothing of another.
"""
