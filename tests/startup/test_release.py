"""The files of a release: the wheel, the source that builds it again, what both say of themselves, and their size."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import lm_eval_edit
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

LARGEST = 10_000_000  # bytes of the wheel: the demo's checkpoint, its second moments and its hypernetwork are in it


def run(*arguments: object, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The source distribution of this tree, and the wheel that is built from it."""
    for needed in ("build", "hatchling"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("dist")
    run("build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    assert len(list(folder.iterdir())) == 2
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_source_builds_the_same_wheel(dist, wheel, tmp_path):
    run("build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (direct,) = tmp_path.glob("*.whl")
    assert direct.name == wheel.name and direct.read_bytes() == wheel.read_bytes()


def test_an_index_would_take_both(dist):
    pytest.importorskip("twine")
    run("twine", "check", "--strict", *sorted(dist.iterdir()), cwd=dist)


def test_the_wheel_is_as_large_as_is_said(wheel):
    size = wheel.stat().st_size
    assert size <= LARGEST
    said = float(re.search(r"The wheel is ([\d.]+) MB", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))[1])
    assert abs(size / 1e6 - said) < 0.5


def test_what_it_says_of_itself(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert metadata["Version"] == citation["version"] == lm_eval_edit.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"] and metadata["Keywords"] and metadata.get_all("Project-URL")
    classifiers = metadata.get_all("Classifier")
    trove = pytest.importorskip("trove_classifiers")
    assert classifiers and set(classifiers) <= set(trove.classifiers)
    assert metadata["Requires-Python"] == ">=3.10" and "Programming Language :: Python :: 3.10" in classifiers
    first = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert first.startswith(lm_eval_edit.__version__)


def test_the_demo_world_comes_with_its_cards(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for card in ("checkpoint", "data"):
            assert f"lm_eval_edit/demo/{card}/README.md" in names
            text = archive.read(f"lm_eval_edit/demo/{card}/README.md").decode()
            assert text.startswith("---\nlicense: apache-2.0")
        described = archive.read("lm_eval_edit/demo/data/README.md").decode()
    files = {Path(name).name for name in names if name.startswith("lm_eval_edit/demo/data/")} - {"README.md"}
    assert {name for name in files if f"`{name}`" not in described} == set()


def test_the_source_has_what_its_tests_and_its_site_need(dist):
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("mkdocs.yml", "docs/hooks.py", "docs/index.md", "tests/conftest.py", "examples/first_edit.ipynb"):
        assert needed in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("build/", "dist/", ".venv"))]
