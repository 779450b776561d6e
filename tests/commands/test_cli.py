"""The command `lm-eval-edit`: its own `run`, its lists, and what it says to mistakes."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_edit import cli
from lm_eval_edit.commands import run as run_command
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.harness import command
from lm_eval_edit.harness.our_tasks import PREFIX, all_ours, list_tasks
from tests.conftest import ROOT
from tests.support.processes import TOY_TASK, python


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Our code beside two tasks of its own, installed nowhere."""
    root = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("checkpoint", "__pycache__")  # a megabyte or ten that no command here reads
    shutil.copytree(ROOT / "lm_eval_edit", root / "lm_eval_edit", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", root)
    tasks = root / "tasks"
    tasks.mkdir()
    (tasks / "toy.yaml").write_text(TOY_TASK.format(name="edithurt_toy", function="data.load"))
    (tasks / "group.yaml").write_text("{group: edithurt_toys, task: [edithurt_toy]}")
    (tasks / "shared_settings").write_text("task: not_a_task_file")
    (tasks / "data.py").write_text(
        "import datasets\n"
        "def load(**kwargs):\n"
        "    return {'test': datasets.Dataset.from_list([{'question': 'q', 'answer': 'a'}] * 3)}\n"
    )
    return root


def test_run_works_without_startup_files_and_without_the_default_index(checkout, tmp_path):
    arguments = ["--model", "dummy", "--tasks", "edithurt_toy", "--limit", "2", "--output_path", tmp_path]
    code = (
        "import sys, lm_eval.tasks._index as index; from lm_eval_edit.cli import main;"
        "real = index.TaskIndex.build;"
        "index.TaskIndex.build = lambda self, paths: print('indexed', *paths) or real(paths);"
        "sys.exit(main(['run', *sys.argv[1:]]))"
    )
    done = python("-c", code, *arguments, path=checkout, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"indexed {checkout / 'tasks'}\n" in done.stdout
    assert "|edithurt_toy|" in done.stdout and "dummy ({}), gen_kwargs" in done.stdout


def test_stock_command_does_not_know_them(checkout):
    """What `run` is for: on PYTHONPATH alone, the harness's own command finds nothing."""
    code = "from lm_eval.tasks import TaskManager; print(TaskManager.__init__.__module__)"
    assert python("-c", code, path=checkout).stdout == "lm_eval.tasks.manager\n"
    plain = "from lm_eval.tasks import TaskManager; print(hasattr(TaskManager.__init__, 'adds_tasks_of'))"
    assert python("-c", plain, path=checkout).stdout == "False\n"
    connected = "from lm_eval_edit import _hooks; _hooks.connect();" + plain
    assert python("-c", connected, path=checkout).stdout == "True\n"


@pytest.mark.parametrize(
    ("tasks", "verdict"),
    [
        (["edithurt_suite"], True),
        (["edithurt_ner", "edithurt_s*"], True),
        (["edithurt_suite", "hellaswag"], False),
        (["*"], False),
        (["tasks/mine.yaml"], False),
        (["edithurt_mine.yaml"], False),
        ([], False),
    ],
)
def test_when_the_default_index_is_left_out(tasks, verdict):
    assert all_ours(tasks, {"edithurt_suite", "edithurt_ner"}) is verdict


@pytest.mark.parametrize("tasks", ["edithurt_ner,edithurt_rte", ["edithurt_ner", "edithurt_rte"]])
def test_tasks_may_stand_in_a_configuration_file(tmp_path, tasks):
    (tmp_path / "config.yaml").write_text(f"tasks: {tasks}")
    in_file = argparse.Namespace(tasks=None, include_path=None, config=str(tmp_path / "config.yaml"))
    assert command.given(in_file, "tasks") == ["edithurt_ner", "edithurt_rte"]
    assert command.given(in_file, "include_path") == []
    overridden = argparse.Namespace(tasks=["hellaswag"], config=in_file.config)
    assert command.given(overridden, "tasks") == ["hellaswag"]


def test_misspelt_task_of_ours():
    with pytest.raises(UserError, match=r"is called 'edithurt_suit'\. Did you mean 'edithurt_suite'\?"):
        all_ours(["hellaswag", "edithurt_suit"], ["edithurt_suite"])


def test_run_hands_everything_on():
    arguments = ["--help", "--model_args", "a=1", "b=2", "--", "-x"]
    assert cli.build_parser().parse_args(["run", *arguments]).arguments == arguments


def test_ls_tasks(checkout):
    entries = [(entry.name, entry.kind, entry.description) for entry in list_tasks(checkout / "tasks")]
    assert entries == [("edithurt_toys", "group", ""), ("edithurt_toy", "task", "Add one to a number")]
    done = python("-m", "lm_eval_edit", "ls", "tasks", path=checkout)
    assert done.stdout == "edithurt_toys  group\nedithurt_toy   task  Add one to a number\n", done.stderr


@pytest.mark.skipif(not any(ROOT.glob("tasks/**/*.yaml")), reason="tasks/ has no YAML file")
def test_every_task_says_what_it_is():
    for entry in list_tasks(ROOT / "tasks"):
        assert entry.name.startswith(PREFIX)
        assert 10 <= len(entry.description) <= 100, f"{entry.path.name}: begin with a comment, one short sentence"


def test_a_reader_that_has_read_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lm_eval_edit", "ls", "presets"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_is_quick():
    """Judged by what is imported: a time would depend on the machine."""
    done = python("-X", "importtime", "-m", "lm_eval_edit", "--help", path=ROOT)
    assert done.returncode == 0 and "run" in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "transformers", "datasets", "lm_eval", "numpy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["rnu"], "Did you mean 'run'?"), (["ls", "taks"], "Did you mean 'tasks'?"), ([], "required: command")],
)
def test_unknown_sub_command(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "ledger", "--pretraind", "demo"], "--pretraind: no such option of lm-eval-edit export. Did you "),
        (["sweep", "--pretraind=demo"], "--pretraind: no such option of lm-eval-edit sweep. Did you mean '--pretr"),
        (["stats", "--coprus", "x"], "required: --layers, --corpus, --tokens; --coprus: no such option of lm-eval-"),
        (["train", "mend", "--otput", "x"], "Did you mean '--output'?"),
        (["check", "--baselin", "x", "--curent", "y"], "Did you mean '--current'?"),
        (["validate", "--model_arg", "x=1", "--modle_args", "x=1"], "Did you mean '--model_args'?"),
        (["--versoin"], "Did you mean '--version'?"),
        (["run", "--model", "dummy", "--taks", "x"], "--taks: no such option. Did you mean '--tasks'?"),
        (["ls", "tasks", "--quite-unlike-anything"], "--quite-unlike-anything: no such option of lm-eval-edit ls."),
        (["compare", "a", "b", "--format", "tabel"], "Did you mean 'table'?"),
    ],
)
def test_the_nearest_option_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_a_space_after_a_comma_is_called_a_space(capsys):
    assert cli.main(["validate", "--model_args", "editor=rome, n_edits=5, v_lrr=1"]) == 1
    said = capsys.readouterr().out
    assert "' n_edits': there is a space after the comma before n_edits;" in said
    assert "' v_lrr': there is a space after the comma before v_lrr;" in said and "list broken" not in said


def test_user_error_in_a_sub_command(monkeypatch, capsys):
    def run(args):
        raise ConfigurationError(["n_edits is -1"])

    monkeypatch.setattr(run_command, "run", run)
    assert cli.main(["run"]) == 1
    assert capsys.readouterr().err == "lm-eval-edit: 1 problem in the configuration\n  - n_edits is -1\n"
