"""Versions of what decides a result, for ledgers and results."""

from __future__ import annotations

from importlib import metadata

import lm_eval_edit


def versions() -> dict[str, str]:
    """Versions of torch, transformers, lm-eval and this package."""
    found = {name: metadata.version(name) for name in ("torch", "transformers", "lm_eval")}
    return found | {"lm_eval_edit": lm_eval_edit.__version__}
