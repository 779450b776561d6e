"""How the harness comes to know us: the start-up shim, the two hooks, and readable errors."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lm_eval_edit._startup import hooks as _hooks
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.harness import our_tasks
from tests.conftest import ROOT
from tests.support.processes import TOY_TASK, python

pytestmark = pytest.mark.libraries

STARTUP = ROOT / "lm_eval_edit" / "_startup"


# ----------------------------------------------------------------------------------------------- the start-up shim


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A stand-in for the harness and for us, small enough to break on purpose."""
    files = {
        "lm_eval/__init__.py": "",
        "lm_eval/models/__init__.py": "NAMES = ['hf']",
        "lm_eval/tasks/__init__.py": "from lm_eval.tasks import manager",
        "lm_eval/tasks/manager.py": "FOLDERS = ['builtin']",
        "lm_eval/evaluator.py": "LOOKS = 0",
        "lm_eval_edit/__init__.py": "",
        "lm_eval_edit/_startup/hooks.py": """
            def register_model():
                from lm_eval import models
                models.NAMES.append('edited_hf')

            def add_tasks():
                from lm_eval.tasks import manager
                manager.FOLDERS.append('ours')

            def look_at_chat_templates():
                from lm_eval import evaluator
                evaluator.LOOKS += 1
            """,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    shutil.copy(STARTUP / "_lm_eval_edit_autoload.py", tmp_path)
    return tmp_path


PRELUDE = """
import sys
import _lm_eval_edit_autoload as shim
shim.install()
watching = lambda: sum(isinstance(finder, shim._Watcher) for finder in sys.meta_path)
"""


def shimmed(world: Path, code: str, *options: str, switch: str = "1") -> subprocess.CompletedProcess:
    # -S: the stand-ins alone, without the site-packages that hold the true ones.
    return python("-S", *options, "-c", PRELUDE + textwrap.dedent(code), path=world, LM_EVAL_EDIT_AUTOLOAD=switch)


SHOW = """
import lm_eval.models as m, lm_eval.tasks as t, lm_eval.evaluator
print(m.NAMES, t.manager.FOLDERS, watching())
"""


def test_shim_extends_all_modules_and_leaves(world):
    done = shimmed(world, f"shim.install(); print(watching()); {SHOW}")
    assert (done.stdout.split("\n")[:2], done.stderr) == (["1", "['hf', 'edited_hf'] ['builtin', 'ours'] 0"], "")


def test_kill_switch(world):
    done = shimmed(world, SHOW, switch="0")
    assert (done.stdout, done.stderr) == ("['hf'] ['builtin'] 0\n", "")


def test_shim_waits_for_the_harness_and_imports_nothing(world):
    code = f"""
    import os, sys
    sys.path.insert(0, {str(world)!r})
    before = set(sys.modules)
    import _lm_eval_edit_autoload
    _lm_eval_edit_autoload.install()
    import json
    print(sorted(name for name in set(sys.modules) - before if not name.startswith(("json", "_json"))))
    """
    # -S: without `site` even the modules that every program has loaded anyway would show up as new.
    done = python("-I", "-S", "-c", textwrap.dedent(code), LM_EVAL_EDIT_AUTOLOAD="1")
    loaded = done.stdout.strip()
    assert "_lm_eval_edit_autoload" in loaded and "'lm_eval_edit" not in loaded and "'lm_eval'" not in loaded
    source = (STARTUP / "_lm_eval_edit_autoload.py").read_text()
    assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == ["import os", "import sys"]


def test_module_looks_as_if_nobody_had_watched(world):
    done = shimmed(
        world,
        """
        import importlib, importlib.util, inspect
        assert importlib.util.find_spec("lm_eval.models").loader.get_filename().endswith("__init__.py")  # a mere look
        import lm_eval.models as m
        assert type(m.__loader__).__name__ == type(m.__spec__.loader).__name__ == "SourceFileLoader"
        assert "NAMES" in inspect.getsource(m)
        print(m.NAMES, importlib.reload(m).NAMES)
        """,
    )
    assert (done.stdout, done.stderr) == ("['hf', 'edited_hf'] ['hf']\n", "")


def test_two_finders_that_ask_each_other(world):
    done = shimmed(world, f"sys.meta_path.insert(0, shim._Watcher()); {SHOW}")
    assert (done.stdout, done.stderr) == ("['hf', 'edited_hf', 'edited_hf'] ['builtin', 'ours', 'ours'] 0\n", "")


@pytest.mark.parametrize("gone", ["lm_eval_edit", "lm_eval_edit/_startup/hooks.py"])
def test_missing_package_is_silent(world, gone):
    path = world / gone
    path.rename(world / "elsewhere")
    done = shimmed(world, SHOW)
    assert (done.stdout, done.stderr) == ("['hf'] ['builtin'] 0\n", "")


@pytest.mark.parametrize("defect", ["raise TypeError('no such thing')", "import no_such_module", "del register_model"])
def test_broken_hook_is_one_warning(world, defect):
    with (world / "lm_eval_edit/_startup/hooks.py").open("a") as file:
        file.write(f"\n{defect}\n")
    done = shimmed(world, SHOW, "-W", "always")
    assert done.returncode == 0 and done.stdout.startswith("['hf'] ")
    assert done.stderr.count("RuntimeWarning: lm-eval-edit could not add itself to lm_eval.models (") == 1
    assert done.stderr.count("Warning") == 1 and "Traceback" not in done.stderr


def test_broken_harness_keeps_its_own_error(world):
    (world / "lm_eval/models/__init__.py").write_text("raise KeyError('upstream')")
    done = shimmed(world, "import lm_eval.models")
    assert done.returncode == 1 and done.stderr.rstrip().endswith("KeyError: 'upstream'")
    assert "lm-eval-edit" not in done.stderr


# ------------------------------------------------------------------------------------- the hooks, on the true harness


@pytest.fixture(scope="module")
def tasks_folder() -> Path:
    folder = ROOT / "tasks"
    if not any(folder.rglob("*.yaml")):
        pytest.skip("tasks/ has no YAML file")
    return folder


@pytest.fixture
def indexed(tasks_folder, monkeypatch) -> list:
    """Connected to the harness; the list receives the folders of each `TaskManager` made, instead of an index."""
    _hooks.connect()
    from lm_eval.tasks._index import TaskIndex

    seen = []
    monkeypatch.setattr(TaskIndex, "build", lambda self, paths: seen.append(list(map(Path, paths))) or {})
    return seen


def test_model_type_is_registered_but_not_imported():
    done = python(
        "-c",
        "import sys; from lm_eval_edit import _hooks; _hooks.register_model(); _hooks.register_model();"
        "from lm_eval.api.registry import model_registry as r;"
        "print('edited_hf' in r, 'hf' in r, 'lm_eval_edit.model' in sys.modules, 'torch' in sys.modules)",
        path=ROOT,
    )
    assert done.stdout.split() == ["True", "True", "False", "False"], done.stderr


@pytest.mark.skipif(not (ROOT / "lm_eval_edit/model.py").is_file(), reason="the model is not written yet")
def test_model_type_is_our_class():
    _hooks.connect()
    from lm_eval.api.registry import get_model

    assert f"{get_model('edited_hf').__module__}:{get_model('edited_hf').__name__}" == _hooks.MODEL_TARGET


def test_tasks_come_after_the_builtin_ones_and_before_the_users(indexed, tasks_folder, tmp_path):
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks import manager as module

    builtin = Path(module.__file__).parent
    _hooks.add_tasks()  # once more: still once only
    assert TaskManager().include_path is None
    assert TaskManager(include_path=tmp_path).include_path == tmp_path
    TaskManager(None, [str(tmp_path), tasks_folder])
    TaskManager(include_defaults=False, include_path=str(tmp_path))
    TaskManager(include_defaults=False)
    assert indexed == [[builtin, tasks_folder], [builtin, tasks_folder, tmp_path], [builtin, tmp_path, tasks_folder],
                       [tmp_path], []]  # fmt: skip


def test_only_our_tasks(indexed, tasks_folder):
    from lm_eval.tasks import TaskManager

    with pytest.raises(KeyError), _hooks.only_our_tasks():
        TaskManager()
        raise KeyError
    TaskManager()
    assert indexed[0] == [tasks_folder] and len(indexed[1]) == 2


@pytest.mark.parametrize(
    ("program", "changed", "ours_alone"),
    [
        ("lm_eval", {}, True),
        ("lm_eval", {"tasks": ["edithurt_editing,edithurt_perplexity"]}, True),
        ("lm_eval", {"tasks": ["edithurt_*"]}, True),
        ("lm_eval", {"tasks": ["edithurt_suite", "hellaswag"]}, False),
        ("lm_eval", {"tasks": ["edit*"]}, False),
        ("lm_eval", {"tasks": ["edithurt_suit"]}, False),  # in the harness's own words
        ("lm_eval", {"tasks": ["edithurt_mine.yaml"]}, False),
        ("lm_eval", {"model": "hf"}, False),
        ("lm_eval", {"include_path": "somewhere"}, False),
        ("my_program.py", {}, False),  # it may ask the manager for other tasks afterwards
    ],
)
def test_the_harness_command_indexes_ours_alone_where_they_are_all_it_asks_for(
    indexed, tasks_folder, monkeypatch, program, changed, ours_alone
):
    from lm_eval.config.evaluate_config import EvaluatorConfig

    class Program:
        __spec__ = None

    monkeypatch.setitem(sys.modules, "__main__", Program())
    monkeypatch.setattr(sys, "argv", [program])
    with contextlib.suppress(Exception):  # an index that nothing is in: no task is found
        EvaluatorConfig(**({"model": "edited_hf", "tasks": ["edithurt_suite"]} | changed)).process_tasks()
    assert tasks_folder in indexed[0] and (indexed[0] == [tasks_folder]) is ours_alone
    from lm_eval.tasks import TaskManager

    TaskManager()
    assert len(indexed[-1]) == 2, "what comes after is as it was"


def test_wrong_call_keeps_the_harness_error(indexed):
    from lm_eval.tasks import TaskManager

    with pytest.raises(TypeError, match="unexpected keyword argument 'include_pth'"):
        TaskManager(include_pth="x")


def test_changed_task_manager_is_refused(monkeypatch):
    from lm_eval.tasks.manager import TaskManager

    monkeypatch.setattr(TaskManager, "__init__", lambda self, folders: None)
    with pytest.raises(RuntimeError, match=r"TaskManager\(self, folders\) takes no include_path"):
        _hooks.add_tasks()


def test_no_task_folder_is_an_error_that_says_where(monkeypatch, tmp_path):
    (tmp_path / "tasks").mkdir()  # a stranger's: site-packages/tasks
    monkeypatch.setattr(our_tasks, "__file__", str(tmp_path / "lm_eval_edit" / "harness" / "our_tasks.py"))
    with pytest.raises(FileNotFoundError, match=r"looked for .*lm_eval_edit.tasks$"):
        our_tasks.tasks_dir()
    (tmp_path / "pyproject.toml").touch()
    assert our_tasks.tasks_dir() == tmp_path / "tasks"
    (tmp_path / "lm_eval_edit" / "tasks").mkdir(parents=True)
    assert our_tasks.tasks_dir() == tmp_path / "lm_eval_edit" / "tasks"


# ------------------------------------------------------------------------------------------------- readable errors

RAISES = """
import sys
from lm_eval_edit._startup.hooks import print_user_errors_plainly
from lm_eval_edit.errors import ConfigurationError
print_user_errors_plainly(), print_user_errors_plainly()
raise {}
"""
OURS = "ConfigurationError(['n_edits is -1'])"
PLAIN = "lm-eval-edit: 1 problem in the configuration\n  - n_edits is -1\n"


@pytest.mark.parametrize("program", ["lm_eval", "lm-eval", "lm-eval-edit", "lm_eval.exe"])
def test_commands_print_user_errors_plainly(tmp_path, program):
    (tmp_path / program).write_text(RAISES.format(OURS))
    done = python(tmp_path / program, path=ROOT)
    assert (done.returncode, done.stderr) == (1, PLAIN)


@pytest.mark.parametrize(("program", "error"), [("mine.py", OURS), ("lm_eval", "ValueError('a defect')")])
def test_other_programs_and_other_errors_keep_their_traceback(tmp_path, program, error):
    (tmp_path / program).write_text(RAISES.format(error))
    done = python(tmp_path / program, path=ROOT)
    assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last)")


def test_python_m_lm_eval_prints_user_errors_plainly(world):
    (world / "lm_eval/__main__.py").write_text(RAISES.format(OURS))
    shutil.copytree(ROOT / "lm_eval_edit", world / "lm_eval_edit", dirs_exist_ok=True)
    done = python("-m", "lm_eval", path=world)
    assert (done.returncode, done.stderr) == (1, PLAIN)


def refuse(**kwargs: object) -> None:
    """A data loader that finds no data."""
    raise UserError("no data here")


def test_harness_passes_our_errors_on(tmp_path):
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Refusing(LM):
        def __init__(self, **kwargs: object):
            raise ConfigurationError(["n_edits is -1"])

        loglikelihood = loglikelihood_rolling = generate_until = None

    from lm_eval.api.registry import model_registry

    if "refusing" not in model_registry:
        model_registry.register("refusing", target=Refusing)
    shutil.copy(__file__, tmp_path / "loaders.py")
    (tmp_path / "task.yaml").write_text(TOY_TASK.format(name="toy", function="loaders.refuse"))
    (tmp_path / "group.yaml").write_text("{group: toys, task: [toy]}")
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    with pytest.raises(ConfigurationError, match="n_edits is -1"):
        lm_eval.simple_evaluate(model="refusing", model_args={}, tasks=["toys"], task_manager=manager)
    with pytest.raises(UserError, match=r"^no data here$"):
        lm_eval.simple_evaluate(model="dummy", model_args={}, tasks=["toys"], task_manager=manager)
