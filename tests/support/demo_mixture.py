"""A small mixture of experts that knows facts of the demo world: trained once, about 90 s of one core, and kept.

It lies in `LM_EVAL_EDIT_TEST_CACHE`, else in lm_eval_edit_tests of the user's cache folder, under a hash of all that
decides its weights.
"""

from __future__ import annotations

import os
from pathlib import Path

from lm_eval_edit.demo import mixture

RECIPE = mixture.Recipe()


def folder() -> Path:
    """Where its checkpoint lies, or will."""
    given = os.environ.get("LM_EVAL_EDIT_TEST_CACHE")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (Path(given) if given else caches / "lm_eval_edit_tests") / f"mixture-{RECIPE.hash()}"


def made() -> Path:
    """Its checkpoint, with `facts.jsonl` and `corpus.txt`; trained if it is not there."""
    found = folder()
    if not found.is_dir():
        try:
            mixture.make(found, RECIPE, progress=False)
        except OSError:  # another process has made it meanwhile
            if not found.is_dir():
                raise
    return found
