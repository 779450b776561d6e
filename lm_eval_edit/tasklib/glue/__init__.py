"""GLUE after editing: the tasks that papers on sequential editing ask between batches; `tasks/edithurt_glue`.

catalogue  the eight tasks as one table: records, label words, which records are items and in which order
documents  one raw record -> a document, every needed field checked
order      the published order of a set's records
published  the published lists, as checksums of their items
sources    the documents of a task, from wherever its records are; the harness's `custom_dataset`
prompts    document -> prompt, document -> target
answers    output -> label, as the published scripts read it and as it is meant
scoring    document and responses -> the metrics of the results table
figures    corpus-level metrics and their standard errors
task       the task class: one generation, and a likelihood for each label word

The protocol is that of the folder `glue_eval`, published with AlphaEdit (Fang et al., arXiv 2410.02355) and before that
by Gupta et al. (arXiv 2401.07453). `tasks/edithurt_glue/README.md` says where it is odd and what is done about it.
"""
