"""The eight tasks of Gu et al. (arXiv 2401.04700): documents, prompts, metrics; `tasks/edithurt_suite` calls it.

catalogue  the eight tasks as one table: hub ids, file names, new tokens, fields that may be shortened
documents  one raw record -> the documents of a task, every needed field checked
sources    the documents from wherever their records are (`tasklib.records`); the harness's `custom_dataset`
checks     what is wrong with the records, told before a model loads
prompts    document -> prompt, document -> target
metrics    output -> number, for seven tasks
ner        the same for the eighth: named entities
script     output -> what the paper's scripts count
scoring    document and output -> the metrics of the results table (`process_results`)
task       the task class: outputs with their ends to `scoring`
likelihood  the same abilities asked by likelihood: `edithurt_suite_mc`
aggregate  corpus-level metrics and their standard errors

The prompts and metrics are those of Gu et al., "Model Editing Can Hurt General Abilities of Large Language Models".
`tasks/edithurt_suite/README.md` says where they come from and where they differ.
"""
