"""Real installations: what pip puts into a virtual environment the stock command finds, what it removes is gone.

The environments borrow the running interpreter's packages, all but ours, through links; nothing is downloaded. Indexing
the harness's 14,000 tasks costs each `lm_eval` command some ten seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

STARTUP_FILES = {"_lm_eval_edit_autoload.py", "lm_eval_edit_autoload.pth", "lm_eval_edit_autoload.start"}
SUITE = "edithurt_suite"


class Environment(NamedTuple):
    """A virtual environment with the harness in it."""

    root: Path

    @property
    def site(self) -> Path:
        return next(self.root.glob("[Ll]ib/**/site-packages"))

    def __call__(self, *command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess:
        """Run a program of this environment from a folder that holds nothing of ours."""
        bin = self.root / "bin"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LM_EVAL_EDIT"))}
        elsewhere = self.root / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        return subprocess.run(
            [bin / str(command[0]), *map(str, command[1:])],
            cwd=cwd or elsewhere,
            env={**inherited, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", **env},
            capture_output=True,
            text=True,
            timeout=900,
        )

    def pip(self, *arguments: object) -> None:
        done = self("python", "-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *what: object) -> None:
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", *what)

    def installed(self) -> set[str]:
        """What lies in site-packages, beside the line that borrows the others' packages."""
        return {path.name for path in self.site.iterdir()} - {"borrowed.pth", "__pycache__"}

    def catalogue(self, **env: str) -> dict[str, list[str]]:
        """Every model type and every task name that the harness knows here."""
        code = (
            "import json, lm_eval.models; from lm_eval.api.registry import model_registry;"
            "from lm_eval.tasks import TaskManager;"
            "print(json.dumps({'models': sorted(model_registry.keys()), 'tasks': TaskManager().all_tasks}))"
        )
        done = self("python", "-c", code, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory) -> Path:
    """Links to all packages of the running interpreter but ours, should it be installed there."""
    folder = tmp_path_factory.mktemp("borrowed") / "site-packages"  # dill goes by this name: other code it would pickle
    folder.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(site).iterdir():
            if not path.name.lstrip("_").startswith("lm_eval_edit") and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def new_environment(borrowed, tmp_path_factory):
    """A function that makes a virtual environment with everything but us."""

    def make() -> Environment:
        root = tmp_path_factory.mktemp("venv")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
        environment = Environment(root)
        (environment.site / "borrowed.pth").write_text(f"{borrowed}\n")
        for script in distribution("lm_eval").entry_points.select(group="console_scripts"):  # as pip would write them
            path = root / "bin" / script.name
            path.write_text(
                f"#!{root / 'bin' / 'python'}\n"
                f"import sys\nfrom {script.module} import {script.attr}\nsys.exit({script.attr}())\n"
            )
            path.chmod(0o755)
        return environment

    return make


@pytest.fixture(scope="module")
def copy_project(tmp_path_factory):
    """A function that copies what is installed to a folder that a test may move or delete."""
    missing = [need for need in ("README.md", f"tasks/{SUITE}") if not (ROOT / need).exists()]
    if missing:
        pytest.skip(f"cannot be built without {' and '.join(missing)}")
    kept = ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "lm_eval_edit", "tasks"]

    def copy() -> Path:
        project = tmp_path_factory.mktemp("project") / "lm-eval-edit"
        project.mkdir()
        for path in map(ROOT.joinpath, kept):
            if path.is_dir():
                shutil.copytree(path, project / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, project)
        return project

    return copy


@pytest.fixture(scope="module")
def bare(new_environment) -> Environment:
    """The harness without us: what every other test is to be compared with."""
    return new_environment()


@pytest.fixture(scope="module")
def regular(new_environment, copy_project) -> Environment:
    """`pip install .`"""
    environment, project = new_environment(), copy_project()
    environment.install(project)
    shutil.rmtree(project)  # nothing may depend on it
    return environment


@pytest.fixture(scope="module")
def editable(new_environment, copy_project) -> Environment:
    """`pip install -e .`"""
    environment = new_environment()
    environment.install("-e", copy_project())
    return environment


@pytest.fixture(scope="module")
def from_sdist(new_environment, copy_project, tmp_path_factory) -> Environment:
    """The wheel that is built from the source distribution."""
    environment, project, dist = new_environment(), copy_project(), tmp_path_factory.mktemp("dist")
    done = environment("python", "-m", "build", "--no-isolation", "--outdir", dist, project)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(project)
    assert len(list(dist.glob("*.tar.gz"))) == 1
    environment.install(*dist.glob("*-py3-none-any.whl"))
    return environment


@pytest.fixture(params=["regular", "editable", "from_sdist"])
def each_kind(request) -> Environment:
    return request.getfixturevalue(request.param)


# -------------------------------------------------------------------------------------------------- it is found


def test_without_us_the_stock_command_knows_neither(bare):
    done = bare("lm_eval", "validate", "--tasks", SUITE)
    assert done.returncode == 1 and f"Tasks not found: {SUITE}" in done.stdout
    done = bare("python", "-c", "from lm_eval.api.registry import get_model; get_model('edited_hf')")
    assert done.returncode == 1 and "no model for this name found" in done.stderr


def test_stock_command_knows_our_tasks(each_kind):
    done = each_kind("lm_eval", "validate", "--tasks", f"{SUITE},hellaswag")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "All tasks found and valid"), done.stderr


def test_registry_knows_our_model_type_and_has_not_imported_it(each_kind):
    code = (
        "import sys, lm_eval.models; from lm_eval.api.registry import model_registry as r;"
        "print('edited_hf' in r, 'hf' in r, 'lm_eval_edit.model' in sys.modules)"
    )
    assert each_kind("python", "-c", code).stdout.split() == ["True", "True", "False"]


def test_stock_command_lists_our_group(regular):
    done = regular("lm-eval", "ls", "groups")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith(f"|{SUITE} ")]


def test_our_command(each_kind):
    done = each_kind("lm-eval-edit", "ls", "tasks")
    assert done.returncode == 0 and SUITE in done.stdout.split(), done.stderr


@pytest.mark.skipif(not (ROOT / "lm_eval_edit/model.py").is_file(), reason="the model is not written yet")
def test_the_command_of_the_readme(each_kind):
    arguments = ["--model", "edited_hf", "--model_args", "editor=rome,n_edits=1", "--tasks", SUITE, "--limit", "2"]
    done = each_kind("lm_eval", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"|{SUITE}" in done.stdout and "|edithurt_" in done.stdout


def test_target_folder_needs_our_command(bare, copy_project, tmp_path):
    bare.install("--target", tmp_path, copy_project())
    done = bare("python", "-c", "import sys; print('_lm_eval_edit_autoload' in sys.modules)", PYTHONPATH=str(tmp_path))
    assert done.stdout == "False\n"
    done = bare("python", "-m", "lm_eval_edit", "ls", "tasks", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and SUITE in done.stdout.split(), done.stderr
    done = bare(
        "python", "-m", "lm_eval_edit", "run", "--model", "none", "--tasks", SUITE, PYTHONPATH=str(tmp_path)
    )  # the tasks are found; that such a model is not, is said after that
    assert f"Selected Tasks: ['{SUITE}']" in done.stderr
    assert "Attempted to load model 'none'" in done.stderr and "edited_hf" in done.stderr


# -------------------------------------------------------------------------------------- it disturbs nobody, and goes


def test_nothing_else_changes(bare, regular):
    without, with_us, switched_off = bare.catalogue(), regular.catalogue(), regular.catalogue(LM_EVAL_EDIT_AUTOLOAD="0")
    assert switched_off == without
    assert set(with_us["models"]) - set(without["models"]) == {"edited_hf"}
    assert set(without["models"]) < set(with_us["models"])
    assert set(without["tasks"]) < set(with_us["tasks"])
    added = set(with_us["tasks"]) - set(without["tasks"])
    assert SUITE in added and all(name.startswith("edithurt_") for name in added)


def test_plain_python_loads_one_small_module(bare, each_kind):
    def loaded(environment: Environment) -> set[str]:
        done = environment("python", "-X", "importtime", "-c", "pass")
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert loaded(each_kind) - loaded(bare) == {"_lm_eval_edit_autoload"}


def test_uninstall_leaves_nothing(new_environment, copy_project):
    for options in [], ["-e"]:
        environment = new_environment()
        environment.install(*options, copy_project())
        assert environment.installed() > STARTUP_FILES
        assert ("lm_eval_edit" in environment.installed()) is not bool(options)  # no stale copy in an editable install
        environment("python", "-c", "import lm_eval_edit.cli, lm_eval_edit._startup.hooks")
        environment.pip("uninstall", "--yes", "lm-eval-edit")
        assert environment.installed() == set()
        done = environment("python", "-c", "import sys; print(sys.meta_path)")
        assert "_lm_eval_edit_autoload" not in done.stdout and done.stderr == ""


def test_checkout_moved_away_is_silent(new_environment, copy_project):
    environment, project = new_environment(), copy_project()
    environment.install("-e", project)
    project.rename(project.with_name("moved"))
    done = environment("python", "-W", "always::RuntimeWarning", "-c", "pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = environment("lm_eval", "validate", "--tasks", "hellaswag", PYTHONWARNINGS="always::RuntimeWarning")
    assert done.returncode == 0 and "lm-eval-edit" not in done.stderr, done.stderr
    assert "edited_hf" not in environment.catalogue()["models"]


def test_wheel_holds_what_the_package_reads(regular):
    """Every file of the package, whatever its kind, and every task file, helpers without `.yaml` included."""

    def files(folder: Path) -> set[Path]:
        found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        return {path for path in found if not {"__pycache__", "_startup"} & set(path.parts)}

    package = regular.site / "lm_eval_edit"
    expected = files(ROOT / "lm_eval_edit") | {Path("tasks") / path for path in files(ROOT / "tasks")}
    assert files(package) == expected
