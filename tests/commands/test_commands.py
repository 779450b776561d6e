"""What the sub-commands of `lm-eval-edit` print about options and editors, and before an edit."""

from __future__ import annotations

import json
import random
import re
import textwrap
from dataclasses import fields

import pytest
import torch
from transformers import PreTrainedModel

from lm_eval_edit import UserError, cli
from lm_eval_edit.editors.base import BUILT_IN, find_editor
from lm_eval_edit.editors.hyperparameters import presets
from lm_eval_edit.settings import EditSettings
from tests.conftest import ROOT
from tests.support.mixtures import mixture_model
from tests.support.processes import python
from tests.support.tiny import (
    FACTS,
    TEMPLATES,
    WORDS,
    save_tiny,
    tiny_model,
    write_facts,
)


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


# ----------------------------------------------------------------------------------------------------- validate, stats


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny model, facts of which one is unusable, and a text."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    records = [
        *(fact.record() for fact in FACTS),
        FACTS[0].record() | {"id": "empty", "target_new": " "},
    ]
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    drawn = random.Random(0)
    (folder / "corpus.txt").write_text("\n".join(" ".join(drawn.choices(WORDS, k=20)) for _ in range(100)))
    return folder


@pytest.fixture
def in_process(world, monkeypatch, capsys, tmp_path):
    """Runs a sub-command; returns (exit status, what it printed, its errors)."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path / "cache"))

    def run(name, model_args, *arguments):
        model_args = f"pretrained={world / 'model'},device=cpu,edit_dataset={world / 'facts.jsonl'},{model_args}"
        status = cli.main([name, "--model_args", model_args, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_validate_tells_what_would_be_edited_without_loading_weights(in_process, world, monkeypatch, tmp_path):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    (tmp_path / "rome.yaml").write_text("v_num_grad_steps: 7\nv_lr: 5e-1\n")
    config = tmp_path / "rome.yaml"
    status, printed, _ = in_process(
        "validate", f"editor=rome,n_edits=3,v_lr=0.1,edit_config={config},edit_layers=2,dtype=bfloat16"
    )
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert status == 0 and lines[-1] == "no problems"
    assert "GPT2LMHeadModel (gpt2), 3 layers, width 32, keys of 96, bfloat16" in " ".join(lines)
    assert "blocks transformer.h.0 to transformer.h.2" in lines
    assert "edits transformer.h.2.mlp.c_proj.weight (96 to 32)" in lines
    assert "layers [2] edit_layers" in lines
    assert "v_lr 0.1 model_args" in lines
    assert f"v_num_grad_steps 7 {config}" in " ".join(lines)
    assert "kl_factor 0.0625 default" in lines
    assert f"facts {world / 'facts.jsonl'}: 4 usable, 1 skipped" in lines and "empty: the target is empty" in lines
    assert any(line.startswith("operations 3 (3 of 1 fact), first to last: ") for line in lines)
    assert "second moments not needed" in lines
    parameters = sum(p.numel() for p in tiny_model().parameters())
    assert f"memory weights {parameters * 2 / 1000:.3g} KB, originals of edited weights 6.14 KB" in " ".join(lines)
    assert "their sums in float32 12.3 KB" in printed


def test_validate_names_presets_and_chosen_layers(in_process, world, tmp_path):
    _, printed, _ = in_process("validate", "editor=rome")
    assert "layer(s) 1 chosen by relative depth" in " ".join(printed.split())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25, "torch_dtype": "float16"})
    )
    status, printed, _ = in_process("validate", f"editor=rome,pretrained={tmp_path}")
    words = " ".join(printed.split())
    assert status == 0 and "layers [17] preset gpt2-xl" in words
    assert "transformer.h.17.mlp.c_proj.weight (6400 to 1600)" in words and "weights 3.12 GB" in words


def test_validate_tells_all_problems_at_once(in_process):
    status, printed, _ = in_process(
        "validate", "editor=rome,n_edits=9,n_edit=3,v_lr=a,edit_layers=7,edit_corpus=wikitxt,data_dir=/nowhere"
    )
    assert status == 1 and "\n6 problems\n" in printed
    for problem in (
        "n_edit: no such option", "v_lr='a': want a number", "layer 7 is out of range", "n_edits=9: only 4 usable",
        "edit_corpus=wikitxt: no such text file", "data_dir=/nowhere",
    ):  # fmt: skip
        assert problem in printed.partition("6 problems")[2]


def test_validate_prints_mixtures_and_what_cannot_edit_them(in_process, tmp_path):
    save_tiny(tmp_path, mixture_model("deepseek_v3", torch.float32))
    facts = write_facts(tmp_path / "facts.jsonl")
    run = f"pretrained={tmp_path},edit_dataset={facts},n_edits=2,edit_layers=1-2"
    status, printed, _ = in_process("validate", f"{run},editor=ft,edit_experts=routed")
    assert status == 0
    flat = " ".join(printed.split())
    assert "mixtures layers 1-2: 4 experts with keys of 16, 2 picked for a token, mlp.experts.down_proj; " in flat
    assert "router gate, shared expert shared_experts.down_proj layer 0: dense edits" in flat
    assert "originals of edited weights, all experts 16.4 KB" in flat
    assert re.search(r"edits +model.layers.1.mlp.experts.down_proj  \(4, 32, 16\)", printed)
    status, printed, _ = in_process("validate", f"{run},editor=ft")
    assert status == 0 and re.search(r"edits +model.layers.1.mlp.shared_experts.down_proj.weight", printed)
    save_tiny(tmp_path, mixture_model("qwen3_moe", torch.float32))
    for editor, why in (
        ("ultraedit", "ultraedit cannot edit the experts of layers 1, 2: it takes one key and one output gradient"),
        ("betaedit,edit_corpus=wikitext", "betaedit cannot edit the experts of layers 1, 2: its null space is found"),
        ("mend,archive=demo", "inner_params: transformer.h.1.mlp.c_fc.weight is no linear map's weight in this model"),
        ("ft,experts=1:9", "experts=9: layer 1 has experts 0 to 3"),
    ):
        where = run.replace(",edit_layers=1-2", "") if editor.startswith("mend") else run
        status, printed, _ = in_process("validate", f"{where},editor={editor}")
        assert status == 1 and why in printed


def test_stats_of_shared_and_of_routed_experts(in_process, tmp_path):
    save_tiny(tmp_path, mixture_model("qwen2_moe", torch.float32))
    corpus, run = tmp_path / "corpus.txt", f"pretrained={tmp_path},editor=none"
    corpus.write_text("\n".join([" ".join(WORDS)] * 3))
    common = ["--layers", "1", "--corpus", corpus, "--tokens", 90]
    status, printed, _ = in_process("stats", run, *common)
    assert status == 0 and "model.layers.1.mlp.shared_expert.down_proj: 24 dimensions, 90 tokens of" in printed
    file = tmp_path / "routed.safetensors"
    status, printed, _ = in_process("stats", run, *common, "--edit_experts", "routed", "--output", file)
    assert status == 0 and "model.layers.1.mlp.experts.down_proj: 4 experts, 16 dimensions, 90 tokens of" in printed
    assert re.search(r"; an expert was picked by \d+ to \d+ of them", printed)
    facts = write_facts(tmp_path / "facts.jsonl")
    options = f"pretrained={tmp_path},edit_dataset={facts},n_edits=2,edit_layers=1,editor=memit,edit_experts=routed"
    status, printed, _ = in_process("validate", f"{options},edit_second_moments={file}")
    assert status == 0 and "for model.layers.1.mlp.experts.down_proj" in " ".join(printed.split())


def test_validate_of_models_that_cannot_be_edited(in_process, tmp_path):
    config = {"model_type": "llama4_text", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 50, "head_dim": 8}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, printed, _ = in_process("validate", f"editor=rome,pretrained={tmp_path},edit_layers=1")
    assert status == 1 and "1 problem\n  - block model.layers.0 holds feed_forward.experts.gate_up_proj" in printed
    status, printed, _ = in_process("validate", "editor=rome,pretrained=/nowhere")
    assert status == 1 and "pretrained=/nowhere: no model configuration found" in printed


def test_validate_says_whether_second_moments_are_there(in_process, world, tmp_path):
    needs = "editor=rome,edit_layers=1,mom2_adjustment=true"
    status, printed, _ = in_process("validate", needs)
    assert status == 1 and "second moments  needed, and not usable" in printed
    assert "Give edit_second_moments=FILE" in printed and "or edit_corpus=wikitext or a text file" in printed
    status, printed, _ = in_process("validate", f"{needs},edit_corpus={world / 'corpus.txt'},edit_corpus_tokens=900")
    assert status == 0 and f"computed from {world / 'corpus.txt'}, 900 tokens" in printed
    file = tmp_path / "moments.safetensors"
    arguments = ["--layers", "0-1", "--corpus", world / "corpus.txt", "--tokens", 900, "--output", file]
    status, printed, _ = in_process("stats", "editor=none", *arguments)
    assert status == 0 and "transformer.h.1.mlp.c_proj: 96 dimensions, 900 tokens of" in printed
    status, printed, _ = in_process("validate", f"{needs},edit_second_moments={file}")
    assert status == 0 and f"{file}, for transformer.h.1.mlp.c_proj" in " ".join(printed.split())
    status, printed, _ = in_process("stats", "editor=none", *arguments[:5], 50, "--output", file)
    _, printed, _ = in_process("validate", f"{needs},edit_second_moments={file}")
    assert "from 50 tokens, fewer than its 96 dimensions" in printed


@pytest.mark.parametrize(
    ("model_args", "arguments", "message"),
    [
        ("editor=none", {"--layers": "3-1"}, "--layers 3-1: the range runs backwards"),
        ("editor=none", {"--layers": 9}, "layer 9 is out of range: the model has layers 0 to 2"),
        ("editor=none", {"--tokens": 0}, "--tokens 0: want a whole number of at least 1"),
        ("editor=none", {"--corpus": "/nowhere"}, "corpus /nowhere: no such text file"),
        ("editor=rome", {}, "--model_args editor=rome: second moments are those of the unedited model"),
        ("n_edit=1", {}, "n_edit: no such option of edited_hf. Did you mean 'n_edits'?"),
        ("editor", {}, "want name=value,name=value,..."),
    ],
)
def test_mistakes_of_stats(in_process, world, model_args, arguments, message):
    given = {"--layers": 1, "--corpus": world / "corpus.txt", "--tokens": 100} | arguments
    status, _, errors = in_process("stats", model_args, *(word for pair in given.items() for word in pair))
    assert status == 1 and message in errors


def test_edited_hf_computes_second_moments_where_they_are_needed(in_process, world):
    from lm_eval_edit import EditedHFLM

    arguments = {
        "pretrained": str(world / "model"), "device": "cpu", "edit_dataset": str(world / "facts.jsonl"),
        "edit_layers": 1, "editor": "rome", "mom2_adjustment": True, "context_templates": list(TEMPLATES),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"no second moments were given.*edit_second_moments=FILE.*or edit_corpus="):
        EditedHFLM(**arguments)
    corpus = {"edit_corpus": str(world / "corpus.txt")}
    lm = EditedHFLM(**arguments, **corpus, edit_corpus_tokens=900)
    record = lm.edit_record()
    assert record["second_moments"] == f"{world / 'corpus.txt'}, 900 tokens"
    plain = EditedHFLM(**arguments | {"mom2_adjustment": False})
    assert record["parameters"] != plain.edit_record()["parameters"]
    with pytest.raises(UserError, match="from 50 tokens, fewer than its 96 dimensions"):
        EditedHFLM(**arguments, **corpus, edit_corpus_tokens=50)
    lm = EditedHFLM(**arguments, **corpus, edit_corpus_tokens=50, edit_mom2_regularisation=0.1)
    assert "regularised by 0.1" in lm.edit_record()["second_moments"]
