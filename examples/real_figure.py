"""The picture of the start page: what a hundred edits did to a real model, method by method.

    python examples/real_figure.py    # docs/figures/real-hundred.png and .svg, of docs/sequential_methods.json

It draws what `sequential_methods.py` measured and measures nothing itself.
"""

from __future__ import annotations

import argparse
import math
import re
from statistics import NormalDist, mean, stdev
from typing import Any

from kept import read
from sequential_methods import KEPT, ROWS

from lm_eval_edit.plots.picture import FORMATS, Picture, drawing
from lm_eval_edit.plots.style import COLOURS, INK, grid

FOLDER = KEPT.parent / "figures"
TITLE = "A hundred facts written into SmolLM2-135M-Instruct"
PANELS = {
    "em": "facts changed",
    "neighbourhood": "neighbouring facts kept",
    "perplexity": "perplexity of ordinary text",
}
Z = NormalDist().inv_cdf(0.975)


def share(values: list[float]) -> tuple[float, float, float]:
    """Mean of a figure of each fact, and the ends of its interval of 95 %.

    Wilson's interval where every value is 0 or 1, else mean ± z · standard error, within what is possible.
    """
    n, middle = len(values), mean(values)
    if set(values) <= {0.0, 1.0}:
        centre = (middle + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = Z / (1 + Z**2 / n) * math.sqrt(middle * (1 - middle) / n + Z**2 / (4 * n**2))
        return middle, centre - half, centre + half
    half = Z * stdev(values) / math.sqrt(n)
    return middle, max(0.0, middle - half), min(1.0, middle + half)


def figures(rows: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Method as the table calls it -> panel -> (figure, low, high); perplexity is of one text and has no interval."""
    found = {}
    for name, (label, *_) in ROWS.items():
        if name in rows:
            row = rows[name]
            found[label] = {
                panel: (row["perplexity"],) * 3 if panel == "perplexity" else share([f[panel] for f in row["facts"]])
                for panel in PANELS
            }
    return found


def picture(found: dict[str, dict[str, tuple[float, float, float]]]) -> Picture:
    """A panel for each figure, a line for each method, the unedited model as a dashed line through all."""
    from matplotlib.figure import Figure

    methods = [name for name in found if name != "none"]
    short = [re.sub(r"^(\w+),.*\((\w+)\)$", r"\1, \2", name) for name in methods]  # "memit, own_targets (BLUE)"
    with drawing():
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (panel, label), colour in zip(panels, PANELS.items(), COLOURS, strict=False):
            axes.axvline(found["none"][panel][0], color=INK, linestyle="--", linewidth=1, label="unedited model")
            for place, name in enumerate(methods):
                middle, low, high = found[name][panel]
                axes.plot([low, high], [place, place], color=colour, linewidth=2.5, solid_capstyle="round", alpha=0.45)
                axes.plot([middle], [place], "o", color=colour, markersize=6)
            axes.set_title(label, fontsize=9)
            if panel == "perplexity":
                axes.set_xlim(left=30)
            else:
                axes.set_xlim(-0.02, 1.03)
            grid(axes, "x")
        panels[0].set_yticks(range(len(methods)), short)
        panels[0].invert_yaxis()
        panels[0].legend(frameon=False, fontsize=8, loc="center left")
        figure.suptitle(TITLE, fontsize=10)
        figure.draw_without_rendering()  # laid out once: else every saving would lay it out anew, from where it was
        figure.set_layout_engine("none")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{label} {found[name][panel][0]:.2f}" for panel, label in PANELS.items())
        for name in found
    )
    return Picture("real-hundred", "methods", TITLE, f"{TITLE}: {told}", figure)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    drawn = picture(figures(read(KEPT)))
    for ending in FORMATS:
        drawn.save(FOLDER / f"{drawn.name}.{ending}")


if __name__ == "__main__":
    main()
