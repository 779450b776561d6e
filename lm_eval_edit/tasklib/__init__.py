"""What the YAML files in `tasks/` call: where documents come from, how they are prompted, how outputs are scored.

    arguments   what a run's arguments say about its model
    catalogue   the eight tasks as one table: hub ids, file names, new tokens, fields that may be shortened
    layouts     find a task's file in a folder and read it: hub-schema JSON(L), or the paper's own folder
    documents   one raw record -> the documents of a task, every needed field checked
    hub         the same records from the Hugging Face hub
    sources     which of the three to use; the harness's `custom_dataset`
    shorten     cut passages and dialogues so that no prompt loses its instruction
    prompts     document -> prompt, document -> target
    outputs     an output with what is known of its end
    metrics     output -> number, for seven tasks; `ner` for the eighth
    script      output -> what the paper's scripts count
    scoring     document and output -> the metrics of the results table (`process_results`)
    suite_task  the task class: outputs with their ends to `scoring`
    aggregate   corpus-level metrics and their standard errors

and for the edit-quality tasks

    editing_documents   the facts of the run's own schedule -> documents
    editing_tasks       what is asked about a document, and of which state of the weights
    editing_metrics     answers -> the metrics of a document
    editing_figures     their means, CounterFact's score, and standard errors

The prompts and metrics of the eight are those of Gu et al., "Model Editing Can Hurt General Abilities of Large
Language Models" (arXiv 2401.04700). `tasks/edithurt_suite/README.md` says where they come from and where they differ.
"""
