"""What the sub-commands of `lm-eval-edit` print about options and editors, and before an edit."""

from __future__ import annotations

import textwrap
from dataclasses import fields

import pytest

from lm_eval_edit import cli
from lm_eval_edit.editors.base import BUILT_IN, find_editor
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.settings import EditSettings
from tests.conftest import ROOT
from tests.helpers import python


def command(*arguments, path=ROOT, **env):
    """Run `lm-eval-edit` in a process of its own, in a wide window."""
    return python("-m", "lm_eval_edit", *arguments, path=path, cwd=ROOT, COLUMNS="120", **env)


# ----------------------------------------------------------------------------------------------------------------- ls


def test_ls_options_describes_every_option():
    done = command("ls", "options")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    for f in fields(EditSettings):
        assert any(line.startswith(f"{f.name}  ") for line in lines), f.name
        assert f.metadata["accepts"] in done.stdout and f.metadata["help"].split()[0] in done.stdout
    assert "takes a whole number >= 0; default 1" in lines
    assert "Every argument of the harness's HFLM passes through" in done.stdout
    assert "editor=rome,v_lr=0.1" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_ls_options_needs_no_libraries():
    done = python("-X", "importtime", "-m", "lm_eval_edit", "ls", "options", path=ROOT)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"torch", "transformers", "lm_eval", "numpy"}


def test_ls_editors_tells_of_each():
    done = command("ls", "editors")
    assert done.returncode == 0, done.stderr
    for name in BUILT_IN:
        editor = find_editor(name)
        paragraph = done.stdout.partition(f"\n{name}\n")[2].partition("\n\n")[0]
        words = " ".join(paragraph.split())
        assert words.startswith(" ".join(editor.summary.split()))
        assert ("batch-single" in words) is editor.batches
        assert f"source {editor.source}" in words
        assert all(preset.name in words for preset in presets(name))


@pytest.mark.parametrize("name", BUILT_IN)
def test_ls_editors_name_tells_every_hyper_parameter(name):
    from lm_eval_edit.commands._editors import describe_editor

    text = "\n".join(describe_editor(name))
    for f in fields(find_editor(name).Options):
        assert f"\n  {f.name} " in text and f.metadata["help"].split()[0] in text
    assert all(preset.source in " ".join(text.split()) for preset in presets(name))


def test_ls_editors_name_of_rome(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["ls", "editors", "rome"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["v_lr", "0.5", "Adam's", "learning", "rate"] in lines
    assert ["layers", "by", "model"] in [line[:3] for line in lines]
    assert "source: EasyEdit and Model-Editing-Hurt, hparams/ROME/gpt2-xl.yaml" in printed


def test_another_packages_editors_are_listed_and_a_broken_one_does_not_hide_them(tmp_path):
    (tmp_path / "theirs.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from lm_eval_edit.editors import Editor, option
        @dataclass(frozen=True)
        class Options:
            strength: float = option("how hard", default=2.0)
        class Theirs(Editor):
            name, summary, source, Options, batches = "theirs", "does as they like", "nowhere", Options, True
            needs = "patience"
            def compute(self, context, facts, history=()): ...
        """)
    )
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (tmp_path / "theirs-1.dist-info" / "entry_points.txt").write_text(
        "[lm_eval_edit.editors]\ntheirs = theirs:Theirs\nbroken = theirs:Missing\n"
    )
    done = command("ls", "editors", path=f"{tmp_path}:{ROOT}")
    assert done.returncode == 0, done.stderr
    assert "theirs  (of an installed package)\n    does as they like\n" in done.stdout
    assert "needs     patience" in done.stdout and "editor=broken: theirs:Missing cannot be imported" in done.stdout
    assert "  strength  2.0  how hard" in command("ls", "editors", "theirs:Theirs", path=f"{tmp_path}:{ROOT}").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "editors", "rmoe"], "editor=rmoe: no such editor. Did you mean 'rome'?"),
        (["ls", "tasks", "x"], "`ls tasks` takes no further name; got 'x'"),
    ],
)
def test_mistakes_of_ls(arguments, message, capsys):
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err
