"""Results files -> pairs of documents -> statistics -> verdicts: `compare`, `check` and what they share.

results         results of lm-eval as values
aggregations    how the harness makes a metric of its documents's values, so that it can be resampled
baseline        a small frozen results file without texts
pairing         which documents of two runs are the same
statistics      intervals, exact tests, what could have been seen
group_means     means over tasks and over edit seeds
compare         two runs held against each other
flips           the documents that changed
tables, as_json what is printed and written of it
check           the same as a gate; check_reports its JUnit and JSON
"""
