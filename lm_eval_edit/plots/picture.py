"""A picture: a matplotlib figure with a name, a title and its content in words; the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_edit._support.files import write_bytes
from lm_eval_edit.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

FORMATS = ("png", "svg")
DPI = 150
_RC: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "text.parse_math": False,  # a dollar in a task's name is a dollar
    "hatch.linewidth": 0.6,
    "path.simplify": False,
    "svg.fonttype": "path",  # a viewer's own font would be wider or narrower than what was laid out
    "svg.hashsalt": "lm-eval-edit",
}


@contextmanager
def drawing() -> Iterator[None]:
    """The style that figures are built and saved in, whatever the user's own matplotlibrc says.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("pictures need matplotlib; install the extra: pip install 'lm-eval-edit[plots]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


@dataclass(frozen=True, eq=False)
class Picture:
    """One figure of a sweep.

    Attributes:
        name: A file's name without its ending, unique within the sweep.
        kind: Which kind of figure; one of `KINDS`.
        title: One line.
        alt: What is to be seen, in words, for those who cannot see it.
        figure: The figure itself.
    """

    name: str
    kind: str
    title: str
    alt: str
    figure: Figure

    def content(self, suffix: str) -> bytes:
        """The file's content: `png` (150 dots per inch) or `svg`."""
        # No date and no version, so that the same numbers give the same file.
        metadata = {"Date": None, "Creator": None, "Title": self.title} if suffix == "svg" else {"Software": None}
        with drawing(), io.BytesIO() as file:
            self.figure.savefig(
                file, format=suffix, dpi=DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.1, facecolor="white"
            )
            return file.getvalue()

    def save(self, path: Path) -> None:
        """Write the picture as `path`'s ending says."""
        write_bytes(path, self.content(path.suffix.removeprefix(".")))

    @cached_property
    def svg(self) -> str:
        """The picture as an `<svg>` element for an HTML page; its ids begin with its name."""
        return self.inline(self.name)

    def inline(self, prefix: str) -> str:
        """The picture as an `<svg>` element whose ids begin with `prefix`, so that it may stand twice in a page.

        It has no links outwards and names itself to screen readers: role, title and description.
        """
        prefix = re.sub(r"[^\w-]+", "_", prefix)
        text = self._file
        text = text[text.index("<svg ") :]
        # matplotlib's style sheet is for `*`: in a page it would be everybody's. It is put on the element instead.
        rules = re.search(r"<style[^>]*>\*\{([^}]*)\}</style>", text)
        text = re.sub(
            r"\s*<metadata>.*?</metadata>|\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL
        )
        # One pass over what can hold an id: its definition, and references by href or url().
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}--", text)
        head, rest = text.split(">", 1)
        names = f' style="{rules[1] if rules else ""}" role="img" aria-labelledby="{prefix}--title {prefix}--desc"'
        words = f'<title id="{prefix}--title">{escape(self.title)}</title><desc id="{prefix}--desc">{escape(self.alt)}'
        return f"{head}{names}>\n{words}</desc>{rest}"

    @cached_property
    def _file(self) -> str:
        return self.content("svg").decode()
