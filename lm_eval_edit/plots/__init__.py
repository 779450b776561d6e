"""Pictures of a sweep: what the paper draws, and what its folder holds beyond.

series    lines over checkpoints with their intervals, as numbers; every formula
choice    which tasks, metric, rows; the paper's values
style     colours, markers, axes, labels
curves    score against edits, a line a task or a line a method; growth of ||Delta|| / ||W||
bars      score against batch size, all facts in one batch
grids     batches x operations
tradeoff  edit quality against ability left
kinds     the kinds of pictures, what of a sweep each needs, and all that apply
words     captions, notes and what a picture shows, in words
picture   a figure with its name and its content in words, as PNG, SVG or part of a page

    from lm_eval_edit.plots import figures
    from lm_eval_edit.sweep.reading import load_sweep

    for picture in figures(load_sweep("out")):
        picture.save(Path(f"{picture.name}.png"))
"""

from lm_eval_edit.plots.choice import choose
from lm_eval_edit.plots.kinds import KINDS, figures
from lm_eval_edit.plots.picture import FORMATS, Picture
from lm_eval_edit.plots.series import gaps

__all__ = ["FORMATS", "KINDS", "Picture", "choose", "figures", "gaps"]
