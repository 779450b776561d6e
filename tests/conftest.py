"""What every test may ask for: the shared oracle beside the checkout (tests skip with a reason without it)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: threads cost more than they give, and xdist has its own

# The same examples in every run; how long a loaded machine takes to draw them says nothing of the code.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is made once and kept is kept for these tests alone: what an earlier version made would be read again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_terminal_summary(terminalreporter) -> None:
    """What was skipped, a line a reason: a clone without the shared folder skips hundreds for one. `-rs` lists each."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped or "s" in terminalreporter.reportchars:
        return
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in skipped
    )
    terminalreporter.section("skipped, by reason", sep="-")
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.write_line(f"{count} skipped: {' '.join(reason.split())}")


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


@pytest.fixture(scope="session")
def sweeps(tmp_path_factory) -> dict[str, Path]:
    """Sweep folders of every kind; not to be written to."""
    from tests.support.sweep_folders import write_sweep

    root = tmp_path_factory.mktemp("sweeps")
    # More than there are markers.
    many = ["rome", "memit", "kn", "ft", "r_rome", "alphaedit", "emmet", "mend", "lora", "rect", "prune", "easyedit"]
    many += [{"editor": "random", "like": "rome"}]
    designs = {
        "rome": write_sweep(root / "rome", preset="fig3_rome_gpt2xl", documents=8),
        "seeds": write_sweep(
            root / "seeds",
            {
                "editors": ["rome", "memit", {"editor": "random", "like": "rome"}], "edit_seeds": [0, 1],
                "n_edits": [1, 5, 20, 50], "tasks": ["edithurt_suite", "edithurt_editing"],
            },
            states={("rome", 50): "collapsed", ("memit", 5): "missing", ("random-like_rome", 20): "failed"},
            documents=12,
        ),
        "at_once": write_sweep(
            root / "at_once", preset="fig4_memit_gpt2xl", documents=8, states={("memit", 3000): "collapsed"}
        ),
        "operations": write_sweep(root / "operations", preset="fig6_memit_gpt2xl", documents=8),
        "many": write_sweep(root / "many", {"editors": many, "n_edits": [1, 50]}, documents=8),
    }  # fmt: skip
    return designs
