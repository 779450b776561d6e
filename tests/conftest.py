"""What every test may ask for: the shared oracle beside the checkout (tests skip with a reason without it)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give, and xdist has its own

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def _shared(folder: str) -> Path:
    path = SHARED / folder
    if not path.is_dir():
        pytest.skip(f"the oracle folder ../shared/{folder} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def reference() -> Path:
    """`../shared/reference`: tiny models and the deltas of the published implementations."""
    return _shared("reference")


@pytest.fixture(scope="session")
def data() -> Path:
    """`../shared/data`: real task data and edit data, never committed."""
    return _shared("data")
