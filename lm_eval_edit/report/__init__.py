"""A sweep as one HTML file that opens from disk: figures, pictures, what broke, and how to make it all again.

comparing   every cell held against its unedited model, by `compare`
budget      how many edits a model takes before it has lost more than can be tolerated
tables      the figures and budgets as a report shows them
items       documents that were right before and wrong after
quality     the tasks about the edits themselves
overview    what the sweep is, how far it got, what must be known before a figure is quoted
settings    how it was made, and the commands that make it again
page        the page, of templates/
writing     the page as a file, and where it may not be written
"""

from lm_eval_edit.report.page import Options, render
from lm_eval_edit.report.writing import check_output, write_report

__all__ = ["Options", "check_output", "render", "write_report"]
