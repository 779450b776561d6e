"""Results files -> pairs of documents -> statistics -> verdicts: `compare`, `check` and what they share.

runs               a run of the harness as values: its tasks, their documents
results            results files of lm-eval, found and read
logged_samples     the samples file of one task as values
logged_metrics     its metrics, as far as they can be compared
aggregations       how the harness makes a metric of its documents's values, so that it can be resampled
baseline           a small frozen results file without texts
pairing            which documents of two runs are the same
changed_documents  which of them one run has right and the other wrong
statistics         intervals, exact tests, what could have been seen
combined           several differences as one: over tasks, over edit seeds
floors             where the unedited model's score leaves nothing to lose
verdicts           one metric before and after, and what is to be said of it
group_means        means over tasks and over edit seeds, as rows
compare            two runs held against each other
other_engines      two runs of different engines, and what those differ by without an edit
flips              the documents that changed, with their texts
tables             what is printed of it
as_json            what is written of it, as `schemas/` describes
gate               what a run must keep to in order to pass
check              the same comparison as a gate
check_reports      its JUnit file and its lines on the screen
"""
