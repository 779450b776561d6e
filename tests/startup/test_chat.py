"""What is said of chat templates before a model loads, and that nothing is said of other people's runs."""

from __future__ import annotations

import itertools
import shutil

import pytest

import lm_eval_edit._startup.chat as chat
from lm_eval_edit.errors import ConfigurationError, UserError
from tests.support.chat_models import SHAPES, UNUSABLE, save_chat
from tests.support.console_scripts import lm_eval, results_of, samples_of
from tests.support.tiny import FACTS, write_facts


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Calls `look` as the harness's function does for a checkpoint with a template and no weights."""
    monkeypatch.setattr(chat, "_advise_once", chat._advise_once.__wrapped__)

    number = itertools.count()

    def look(template, ours=("edithurt_rte",), model_args="", more=None, **asked):
        folder = save_chat(tmp_path / f"model{next(number)}", template)  # tokenizers are remembered by their names
        (folder / "model.safetensors").unlink()
        given = f"pretrained={folder}{model_args}" if more is None else more | {"pretrained": str(folder)}
        arguments = {"model": "hf", "model_args": given, "tasks": list(ours), **asked}
        chat.look(arguments, list(ours))

    return look


@pytest.mark.parametrize("shape", SHAPES)
def test_a_template_that_is_applied_is_fine(look, shape, caplog):
    look(SHAPES[shape][0], apply_chat_template=True)
    assert not caplog.records


def test_perplexity_is_told_that_no_template_touches_it(look, caplog):
    template = SHAPES["brackets"][0]
    look(template, ours=("edithurt_perplexity", "edithurt_rte"), apply_chat_template=True)
    (record,) = caplog.records
    assert "--apply_chat_template does not touch it" in record.getMessage()
    caplog.clear()
    look(template, ours=("edithurt_per*",), apply_chat_template=True)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("around", [{"apply_chat_template": True}, {"system_instruction": "Be brief."}])
def test_tasks_that_ask_as_published_are_refused(look, around):
    template = SHAPES["brackets"][0]
    with pytest.raises(UserError, match="edithurt_zsre asks as the published scripts do"):
        look(template, ours=("edithurt_zsre", "edithurt_rte"), **around)
    with pytest.raises(ConfigurationError) as told:
        look(template, ours=("edithurt_*",), **around)
    assert [each.split()[0] for each in told.value.problems] == ["edithurt_zsre", "edithurt_counterfact_generation"]
    with pytest.raises(ConfigurationError) as told:
        look(None, ours=("edithurt_zsre",), apply_chat_template=True)
    assert "asks as the published scripts do" in told.value.problems[0], "with the other problems"
    assert "has no chat template" in told.value.problems[1]
    look(template, ours=("edithurt_zsre",))


def test_no_template(look):
    with pytest.raises(UserError, match="--apply_chat_template: this model's tokenizer has no chat template"):
        look(None, apply_chat_template=True)


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_template_without_a_users_turn(look, name):
    with pytest.raises(UserError, match=f"--apply_chat_template: .*{UNUSABLE[name][1]}"):
        look(UNUSABLE[name][0], apply_chat_template=True)


def test_one_of_several_templates(look):
    several = {"default": SHAPES["brackets"][0], "tool": SHAPES["braces"][0]}
    look(several, apply_chat_template="default")
    with pytest.raises(UserError, match="would render with the template 'default' all the same"):
        look(several, apply_chat_template="tool")
    both = {"chat_template_args": {"chat_template": "tool"}}
    look(several, apply_chat_template="tool", more=both)
    with pytest.raises(UserError, match=r"--apply_chat_template rag: .* default, tool"):
        look(several, apply_chat_template="rag")


def test_a_template_that_wants_a_system_turn(look):
    """It is fine behind one, which the harness puts there; without it the run is told what is missing."""
    template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn first') }}{% endif %}"
        "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"
    )
    look(template, apply_chat_template=True, system_instruction="Be brief.")
    with pytest.raises(UserError, match=r"a system turn first.*: give --system_instruction"):
        look(template, apply_chat_template=True)
    with pytest.raises(UserError) as error:
        look("{{ raise_exception('never') }}", apply_chat_template=True)
    assert "--system_instruction" not in str(error.value)


def test_a_name_where_there_is_one_template(look):
    """The harness warns and takes the one."""
    look(SHAPES["brackets"][0], apply_chat_template="tool")


@pytest.mark.parametrize("model", ["local-completions", object()])
def test_another_type_of_model_without_a_checkpoint_is_not_the_demo(model):
    chat.look({"model": model, "model_args": None, "apply_chat_template": True}, ["edithurt_rte"])
    with pytest.raises(UserError, match="no chat template"):
        chat.look({"model": "edited_hf", "model_args": None, "apply_chat_template": True}, ["edithurt_rte"])


@pytest.mark.parametrize("shape", ["BOS, no system", "trims the start"])
def test_a_system_instruction_that_would_be_dropped(look, shape):
    """The harness renders without it where the template takes none; some templates pass over the role."""
    if shape == "trims the start":
        template = "{% for m in messages if m.role == 'user' %}<|start|>{{ m.content }}{% endfor %}"
    else:
        template = SHAPES[shape][0]
    with pytest.raises(UserError, match=r"--system_instruction: this model's chat template .*leave it out"):
        look(template, apply_chat_template=True, system_instruction="Be brief.")


def test_advice_once_for_a_chat_model_that_is_asked_without(look, caplog):
    look(SHAPES["brackets"][0])
    assert caplog.text.count("--apply_chat_template asks it as a chat user would") == 1
    caplog.clear()
    look(None)
    look(SHAPES["brackets"][0], ours=())
    assert not caplog.records


def test_edits_inside_and_questions_outside(look, caplog):
    look(SHAPES["brackets"][0], model_args=",edit_chat_template=true")
    assert "edited inside the chat template" in caplog.text and caplog.text.count("--apply_chat_template") == 1


@pytest.mark.slow
def test_the_stock_command(tmp_path):
    """Edited inside the template and asked there, from nothing but the command line; what it advises and refuses."""
    model = save_chat(tmp_path / "model", SHAPES["BOS, trims"][0])
    facts = write_facts(tmp_path / "facts.jsonl", FACTS)
    options = f"pretrained={model},editor=rome,edit_layers=1,v_num_grad_steps=3,n_edits=2,edit_dataset={facts}"
    command = ["--model", "edited_hf", "--device", "cpu", "--log_samples", "--tasks", "edithurt_efficacy"]
    done = lm_eval(
        *command, "--model_args", f"{options},edit_chat_template=true,edit_ledger=kept", "--apply_chat_template",
        "--output_path", "inside", cwd=tmp_path,
    )  # fmt: skip
    assert "2 edits inside the chat template: " in done.stderr and "asks it as a chat user would" not in done.stderr
    results = results_of(tmp_path / "inside")
    assert results["config"]["edit"]["chat_template"]["before"] == SHAPES["BOS, trims"][1]
    for sample in samples_of(tmp_path / "inside", "edithurt_efficacy"):
        text = sample["arguments"]["gen_args_0"]["arg_0"]
        assert text == SHAPES["BOS, trims"][1] + sample["doc"]["prompt"] + SHAPES["BOS, trims"][2]
    done = lm_eval(*command, "--model_args", options, "--output_path", "outside", cwd=tmp_path)
    assert done.stderr.count("asks it as a chat user would") == 1
    shutil.copytree(model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    base = options.replace(str(model), str(tmp_path / "base"))
    (tmp_path / "base" / "model.safetensors").unlink()  # nothing of it is loaded before this is told
    command += ["--model_args", base, "--apply_chat_template", "--output_path", "refused"]
    done = lm_eval(*command, cwd=tmp_path, ok=False)
    assert "this model's tokenizer has no chat template" in done.stderr and "Traceback" not in done.stderr
