"""`edited_hf` in the harness: the same as hf when nothing is edited, never confused with it when something is."""

from __future__ import annotations

import json

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from lm_eval_edit import ConfigurationError, EditedHFLM
from tests.support.tiny import (
    FACTS,
    LEARNABLE,
    SENTENCES,
    TEMPLATES,
    same_weights,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
    weights_of,
)

pytestmark = pytest.mark.libraries

OPTIONS = {
    "v_num_grad_steps": 25, "v_weight_decay": 1e-3, "clamp_norm_factor": 8, "context_templates": list(TEMPLATES)
}  # fmt: skip
TASK = """
task: tiny_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {output_type}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
{extra}
"""
GENERATION = "generation_kwargs: {until: [], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny model, facts, and two local YAML tasks of the harness's own kinds."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model")
    lines = "\n".join(json.dumps(fact.record()) for fact in (*LEARNABLE, *FACTS[2:]))
    (folder / "facts.jsonl").write_text(lines)
    words = SENTENCES[0].split()[:12]
    docs = [{"prompt": " ".join(words[: 2 + i]), "answer": "German", "wrong": "Oslo"} for i in range(10)]
    (folder / "docs.jsonl").write_text("\n".join(json.dumps(doc) for doc in docs))
    tasks = folder / "tasks"
    tasks.mkdir()
    for kind, output_type, extra in (
        ("choice", "multiple_choice", 'doc_to_choice: ["German", "Oslo"]\nmetric_list: [{metric: acc}]'),
        (
            "text",
            "generate_until",
            "generation_kwargs: {until: [], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]",
        ),
    ):
        file = folder / "docs.jsonl"
        (tasks / f"{kind}.yaml").write_text(TASK.format(kind=kind, output_type=output_type, extra=extra, file=file))
    return folder


def arguments(world, **extra):
    return {
        "pretrained": str(world / "model"), "device": "cpu", "edit_dataset": str(world / "facts.jsonl"),
        "edit_seed": "none", "edit_layers": 1, "edit_config": OPTIONS, "n_edits": 2,
    } | extra  # fmt: skip


def evaluate(world, lm, **kwargs):
    manager = TaskManager(include_path=str(world / "tasks"), include_defaults=False)
    return lm_eval.simple_evaluate(
        model=lm, tasks=["tiny_choice", "tiny_text"], task_manager=manager, bootstrap_iters=0, **kwargs
    )


def responses(results):
    return [sample["resps"] for task in sorted(results["samples"]) for sample in results["samples"][task]]


def test_without_an_editor_it_is_hf_to_the_last_bit(world):
    ours = EditedHFLM(str(world / "model"), device="cpu", editor="none")
    theirs = HFLM(str(world / "model"), device="cpu")
    a, b = evaluate(world, ours), evaluate(world, theirs)
    assert responses(a) == responses(b) and a["results"] == b["results"]
    edited = EditedHFLM(**arguments(world, editor="rome"))
    c = evaluate(world, edited)
    assert responses(c) != responses(b), "the comparison would see an edit"
    edited.restore()
    assert responses(evaluate(world, edited)) == responses(b), "restored is unedited"
    edited.apply()
    assert responses(evaluate(world, edited)) == responses(c)


def test_the_edit_block_of_the_results(world):
    lm = EditedHFLM(**arguments(world, editor="rome"))
    edit = json.loads(json.dumps(evaluate(world, lm)["config"] | lm.get_model_info(), default=str))["edit"]
    assert (edit["editor"], edit["n_edits"], edit["edit_batch_size"], edit["layers"]) == ("rome", 2, 1, [1])
    assert edit["fact_ids"] == ["0", "1"] and edit["dataset"]["usable"] == 4
    assert [after["em"] for after in edit["after_each_edit"]] == [1.0, 1.0]
    assert [before["em"] for before in edit["before_each_edit"]] == [0.0, 0.0]
    norms = edit["parameters"]["transformer.h.1.mlp.c_proj.weight"]
    assert (
        norms["relative_norm"] == pytest.approx(norms["delta_norm"] / norms["weight_norm"]) and norms["delta_norm"] > 0
    )
    assert edit["weights_fingerprint"] != edit["unedited_fingerprint"]
    assert edit["guards"] == {
        "weights_changed": True, "weights_finite": True, "answers_changed": 2, "answers_changed_ok": True,
        "retained": edit["guards"]["retained"], "edits": 2, "right_after_own_edit": 2, "residual_closed": None,
        "right_at_end": edit["guards"]["right_at_end"], "edits_took_ok": edit["guards"]["right_at_end"] >= 1,
    }  # fmt: skip
    assert {"torch", "transformers", "lm_eval", "lm_eval_edit"} == edit["versions"].keys()
    assert EditedHFLM(str(world / "model"), device="cpu").get_model_info()["edit"]["editor"] == "none"


@pytest.mark.parametrize("first", ["edited", "unedited"])
def test_a_shared_response_cache_never_mixes_two_states(world, tmp_path, first):
    cache = str(tmp_path / "cache")
    models = {
        "edited": EditedHFLM(**arguments(world, editor="rome")),
        "unedited": EditedHFLM(str(world / "model"), device="cpu"),
    }
    clean = {name: responses(evaluate(world, lm)) for name, lm in models.items()}
    assert clean["edited"] != clean["unedited"]
    order = [first, *({"edited", "unedited"} - {first})]
    cached = {name: responses(evaluate(world, models[name], use_cache=cache)) for name in order}
    assert cached == clean
    again = {name: responses(evaluate(world, models[name], use_cache=cache)) for name in order}
    assert again == clean


def test_the_cache_is_really_used(world, tmp_path):
    lm = EditedHFLM(**arguments(world, editor="rome"))
    wanted = responses(evaluate(world, lm, use_cache=str(tmp_path / "cache")))
    lm.model.forward = lambda *_, **__: pytest.fail("asked the model again")
    assert responses(evaluate(world, lm, use_cache=str(tmp_path / "cache"))) == wanted


def test_a_changed_state_does_not_keep_the_old_cache(world, tmp_path):
    lm = EditedHFLM(**arguments(world, editor="rome"))
    evaluate(world, lm, use_cache=str(tmp_path / "cache"))
    before = lm.cache_hook.dbdict.tablename
    lm.restore()
    assert lm.cache_hook.dbdict.tablename != before


def test_both_of_the_harness_parsers(world):
    text = (
        f"pretrained={world}/model,editor=rome,n_edits=1,edit_layers=1,edit_seed=none,edit_dataset={world}/facts.jsonl"
    )
    lm = EditedHFLM.create_from_arg_string(text, {"device": "cpu", "batch_size": 2})
    assert lm.edit_record()["layers"] == [1] and lm.edit_record()["fact_ids"] == ["0"]
    from lm_eval._cli.utils import key_val_to_dict

    lm = EditedHFLM.create_from_arg_obj(key_val_to_dict(text + ",edit_offset=1"), {"device": "cpu"})
    assert lm.edit_record()["fact_ids"] == ["1"]
    with pytest.raises(ConfigurationError, match="a list broken at its commas"):
        broken = simple_parse_args_string(text + ",edit_layers=[1,2]")
        EditedHFLM.create_from_arg_obj(broken, {"device": "cpu"})


def test_a_given_model_object_is_edited_in_place(world):
    model = tiny_model()
    kept = weights_of(model)
    lm = EditedHFLM(**arguments(world, pretrained=model, tokenizer=tiny_tokenizer(), editor="rome"))
    assert not same_weights(model, kept)
    lm.restore()
    assert same_weights(model, kept)


def test_the_ledger_option_stores_and_replays(world, tmp_path):
    first = EditedHFLM(**arguments(world, editor="rome", edit_ledger=str(tmp_path / "ledger")))
    again = EditedHFLM(**arguments(world, editor="rome", edit_ledger=str(tmp_path / "ledger"), n_edits=4))
    assert same_weights(EditedHFLM(**arguments(world, editor="rome", n_edits=4)).model, weights_of(again.model))
    again.apply(2)
    assert same_weights(again.model, weights_of(first.model))


def test_bfloat16_models_are_edited_with_the_loss_recorded(world):
    lm = EditedHFLM(**arguments(world, editor="rome", dtype="bfloat16"))
    (report,) = lm.edit_record()["parameters"].values()
    assert lm.model.dtype == torch.bfloat16 and 0 < report["rounding_loss"] < 0.2


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"editor": "rmoe"}, r"editor=rmoe: no such editor. Did you mean 'rome'\? Known are none, rome"),
        ({"n_edit": 3}, r"n_edit: no such option of edited_hf. Did you mean 'n_edits'\?"),
        ({"paralelize": True}, r"paralelize: no such option of edited_hf. Did you mean 'parallelize'\?"),
        ({"n_edits": -1.0}, r"n_edits=-1: want a whole number of at least 0"),
        ({"n_edits": 1.5}, r"n_edits=1.5: want a whole number of at least 0"),
        ({"n_edits": "many"}, r"n_edits=many: want a whole number"),
        ({"n_edits": 5}, r"n_edits=5: only 4 usable facts are there"),
        ({"edit_batch_size": 2}, r"edit_batch_size=2: rome edits one fact at a time"),
        ({"edit_dataset": "/nowhere/facts.json"}, r"edit_dataset=/nowhere/facts.json: no such file"),
        ({"edit_layers": 9}, r"layer 9 is out of range: the model has layers 0 to 2"),
        ({"edit_layers": "8-3"}, r"edit_layers=8-3: the range runs backwards"),
        ({"edit_layers": "a"}, r"edit_layers=a: want a layer \(17\), a range \(3-8\)"),
        ({"edit_config": "/nowhere.yaml"}, r"no such file: /nowhere.yaml"),
        (
            {"mom2_adjustment": True},
            r"needs the second moments of layer 1; no second moments were given. Give edit_second",
        ),
        (
            {"editor": "memit", "edit_config": None, "edit_layers": "0-1"},
            r"second moments of layers 0, 1.*edit_corpus=",
        ),
        ({"data_dir": "/nowhere"}, r"data_dir=/nowhere"),
        ({"edit_facts_for": "kn"}, r"edit_facts_for=kn: goes with editor=none; rome is asked about the facts it edits"),
        ({"edit_facts_for": "knn", "editor": "none"}, r"edit_facts_for=knn: editor=knn: no such editor. Did you mean"),
        ({"pretrained": "/nowhere/model"}, r"pretrained=/nowhere/model: no model configuration found"),
        ({"load_in_4bit": True}, r"load_in_4bit=True: 4-bit weights cannot hold an edit"),
        ({"gguf_file": "x.gguf"}, r"gguf_file=x.gguf: (no such file in|goes with)"),
        ({"autogptq": True}, r"autogptq=True: GPTQ weights are integers"),
        ({"tp_plan": "auto"}, r"tp_plan=auto: tensor-parallel weights"),
        ({"peft": "x"}, r"peft=x: with an adapter nobody could say"),
        ({"backend": "seq2seq"}, r"backend=seq2seq: edited_hf edits decoder-only models"),
    ],
)
def test_every_mistake_has_its_message_before_the_model_loads(world, monkeypatch, given, message):
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigurationError, match=message):
        EditedHFLM(**arguments(world, editor="rome") | given)


def test_all_mistakes_are_told_at_once(world):
    with pytest.raises(ConfigurationError) as caught:
        EditedHFLM(**arguments(world, editor="rmoe", n_edits=1.5, n_edit=3, data_dir="/nowhere", load_in_8bit=True))
    assert len(caught.value.problems) == 5


def test_encoder_decoders_and_quantised_checkpoints_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "num_layers": 2}))
    with pytest.raises(ConfigurationError, match="the model is a t5 encoder-decoder"):
        EditedHFLM(str(tmp_path), editor="rome")
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="the checkpoint is quantised"):
        EditedHFLM(str(tmp_path), editor="rome")


def test_a_ledger_of_other_options_is_refused_before_loading(world, tmp_path, monkeypatch):
    EditedHFLM(**arguments(world, editor="rome", edit_ledger=str(tmp_path)))
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigurationError, match=r"options.layers is \[1\] in the ledger"):
        EditedHFLM(**arguments(world, editor="rome", edit_ledger=str(tmp_path), edit_layers=2))


def test_a_broken_line_and_a_missing_field_are_named(world, tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text('{"subject": "a", "prompt": "{} x", "target_new": "y"}\n{"subject"\n')
    with pytest.raises(ConfigurationError, match=r"facts.jsonl, line 2: not JSON"):
        EditedHFLM(**arguments(world, editor="rome", edit_dataset=str(file)))
    file.write_text('{"subject": "a", "prompt": "{} x"}\n')
    with pytest.raises(ConfigurationError, match=r"facts.jsonl, record 1: field 'target_new' is missing"):
        EditedHFLM(**arguments(world, editor="rome", edit_dataset=str(file)))


def test_easyedits_hparams_file_is_accepted_as_it_is(world, tmp_path):
    file = tmp_path / "gpt2-xl.yaml"
    file.write_text(
        "alg_name: 'ROME'\nmodel_name: './gpt2-xl'\nstats_dir: './data/stats'\ndevice: 0\nlayers: [1]\n"
        "fact_token: 'subject_last'\nv_num_grad_steps: 3\nv_lr: 5e-1\nv_loss_layer: 2\nv_weight_decay: 5e-1\n"
        "clamp_norm_factor: 4\nkl_factor: 0.0625\nmom2_adjustment: false\ncontext_template_length_params: [[5, 10], "
        "[10, 10]]\nrewrite_module_tmp: 'transformer.h.{}.mlp.c_proj'\nmom2_dataset: 'wikipedia'\nmom2_n_samples: "
        "100000\nmom2_dtype: 'float32'\nmodel_parallel: false\n"
    )
    lm = EditedHFLM(**arguments(world, editor="rome", n_edits=1, edit_config=str(file), edit_layers=None))
    options = lm.edit_record()["options"]
    assert (options["v_lr"], options["v_num_grad_steps"], options["layers"]) == (0.5, 3, (1,))
    assert len(lm.edit_record()["context_templates"]) == 21
    file.write_text(file.read_text().replace("v_loss_layer: 2", "v_loss_layer: 47"))
    with pytest.raises(ConfigurationError, match=r"v_loss_layer=47: .* another size, this one's last layer is 2"):
        EditedHFLM(**arguments(world, editor="rome", edit_config=str(file)))
    file.write_text("v_lr: [\n")
    with pytest.raises(ConfigurationError, match=r"gpt2-xl.yaml, line 2: not YAML"):
        EditedHFLM(**arguments(world, editor="rome", edit_config=str(file)))
