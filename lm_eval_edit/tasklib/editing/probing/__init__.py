"""What `edithurt_probing` asks: is what an edit wrote known, or is it only said after one prompt?

frames     the texts around a fact's prompt: negation, the check of a statement
said       what is taken from a freely generated answer, and whether an object is in it
documents  the facts of the run's own schedule -> documents
chat       the model's chat template around a question

`probing_tasks` and `probing_metrics` beside this folder, which build on the other tasks about the run's facts, ask and
score it.
"""
