"""Ctrl-C and SIGTERM: one line that says what is kept, the shell's exit status, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from lm_eval_edit import cli
from lm_eval_edit._support import interrupts as _interrupts
from lm_eval_edit.commands import run as run_command
from lm_eval_edit.commands import stats, sweep, train, validate
from tests.conftest import ROOT

ARGUMENTS = {
    sweep: (["sweep", "--preset", "x", "-o", "out"], "kept in out; the same command continues there"),
    stats: (["stats", "--layers", "0", "--corpus", "c", "--tokens", "9"], "the same command continues it"),
    train: (["train", "mend", "--output", "m.safetensors"], "kept beside m.safetensors; the same command continues"),
    validate: (["validate"], "nothing was changed; the same command starts anew"),
    run_command: (["run", "--model", "dummy"], "nothing is kept; the same command starts anew"),
}


@pytest.mark.parametrize("command", ARGUMENTS, ids=lambda command: command.__name__.rpartition(".")[2])
@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, 130), (_interrupts.Terminated, 143)])
def test_every_command_says_what_is_kept(monkeypatch, capsys, command, error, status):
    def interrupted(args):
        raise error

    interrupted.__module__ = command.__name__
    monkeypatch.setattr(command, "run", interrupted)
    arguments, kept = ARGUMENTS[command]
    assert cli.main(arguments) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(("interrupted: ", "terminated: ")) and kept in lines[0]


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (["-m", "lm_eval"], signal.SIGINT, 130),
        (["-m", "lm_eval"], signal.SIGTERM, 143),
        (["-m", "lm_eval_edit", "run"], signal.SIGINT, 130),
    ],
)
def test_a_run_that_is_stopped_while_it_edits(tmp_path, command, number, status):
    ledger = tmp_path / "ledger"
    options = ["--model", "edited_hf", "--model_args", f"editor=rome,n_edits=500,edit_ledger={ledger}"]
    with subprocess.Popen(
        [sys.executable, *command, *options, "--tasks", "edithurt_sst2"],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    ) as process:  # fmt: skip
        first, started = ledger / "ops" / "00000.json", time.monotonic()
        while not first.exists() and process.poll() is None and time.monotonic() - started < 120:
            time.sleep(0.1)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert (
        said.strip()
        .splitlines()[-1]
        .endswith(f"the edits made so far are kept in {ledger}; the same command replays them and continues")
    )


def test_what_a_library_makes_of_ctrl_c_is_no_traceback(monkeypatch, capsys):
    """transformers turns it, during an import, into ModuleNotFoundError: Could not import module 'PreTrainedModel'."""

    def interrupted(args):
        _interrupts._asked.append(signal.SIGINT)
        raise ModuleNotFoundError("Could not import module 'PreTrainedModel'")

    interrupted.__module__ = validate.__name__
    monkeypatch.setattr(validate, "run", interrupted)
    monkeypatch.setattr(_interrupts, "_asked", [])
    assert cli.main(["validate"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted: nothing was changed; the same command starts anew"


BEFORE_WORK = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = {argv!r}
sys.orig_argv = ["python", *{argv!r}]
import _lm_eval_edit_autoload as shim
shim.install()
{then}
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:  # as careless libraries do
    print("went on")
"""


def interrupted_early(argv, then=""):
    return subprocess.run(
        [sys.executable, "-S", "-c", BEFORE_WORK.format(argv=argv, then=then)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'lm_eval_edit' / '_startup'}:{ROOT}", "LM_EVAL_EDIT_AUTOLOAD": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ["/usr/bin/lm_eval", "--model", "edited_hf"],
        ["/usr/bin/lm-eval", "run", "--model=edited_hf", "--tasks", "edithurt_rte"],
        ["/usr/bin/lm-eval-edit", "ls"],
    ],
)
def test_ctrl_c_while_the_libraries_are_imported(argv):
    """The stock command takes seconds before it asks for our model; until then a traceback of its insides was all."""
    done = interrupted_early(argv)
    assert done.returncode == 130 and done.stdout == ""
    assert done.stderr.strip() == "interrupted: nothing was begun; the same command starts it"


@pytest.mark.parametrize("argv", [["lm_eval", "--model", "hf"], ["pytest", "edited_hf"], ["-c", "--model=edited_hf"]])
def test_other_programs_keep_their_ctrl_c(argv):
    done = interrupted_early(argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_once_at_work_ctrl_c_is_an_exception_again():
    then = "from lm_eval_edit._support import interrupts; interrupts.keep('kept')"
    done = interrupted_early(["lm_eval", "--model", "edited_hf"], then)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_help_for_a_reader_that_has_gone():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval_edit", "sweep", "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    os.close(write)
    assert done.returncode in (0, 141) and done.stderr == ""  # argparse passes over what it cannot print
