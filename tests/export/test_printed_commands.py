"""The commands that an export prints and its card shows run as they are, and give the edited model's answers."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from lm_eval_edit import UserError
from lm_eval_edit.export.commands import VLLM_WITHOUT_LORA, commands, model_args, notices
from lm_eval_edit.facts.exported import RECORD, export_of, exported_facts
from lm_eval_edit.tasklib.editing.documents import scheduled_facts
from tests.support.printed_commands import evaluate, in_the_card, make_exports
from tests.support.tiny import LEARNABLE, tiny_llama, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    # With peft the harness cuts the vocabulary to the tokenizer's: the same softmax needs as many rows as it has words.
    return make_exports(tmp_path_factory.mktemp("exports"), tiny_llama(vocab_size=len(tiny_tokenizer())))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_the_commands_of_the_card_for_the_stock_engine_run_as_printed(exports, tmp_path, method):
    said = []
    for form in ("peft", "hf"):
        folder = exports / f"{method}-{form}"
        (command,) = [command for command in in_the_card(folder) if "--model hf" in command]
        said.append(evaluate(command, folder, tmp_path / form))
    assert said[0] == pytest.approx(said[1], abs=1e-5)
    base = f"lm_eval --model hf --model_args pretrained={exports}/model --tasks edithurt_efficacy"
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(json.dumps(fact.record()) for fact in LEARNABLE))
    unedited = evaluate(
        base, tmp_path, tmp_path / "base", "--metadata", f"edit_dataset={facts},edit_seed=none,n_edits=2"
    )
    assert all(after - before > 1 for before, after in zip(unedited, said[0], strict=True))


def test_every_command_names_the_dtype_and_lora_names_its_modules(exports):
    for method in ("rome", "memit"):
        for form in ("peft", "hf"):
            found = in_the_card(exports / f"{method}-{form}")
            assert [re.search(r"--model (\w+)", command)[1] for command in found] == ["hf", "vllm"]
            assert all("float32" in command and "--tasks edithurt_efficacy" in command for command in found)
            assert all("..." not in command for command in found)
    *_, words = shlex.split(in_the_card(exports / "memit-peft")[1].split(" --tasks")[0])
    assert json.loads(words)["lora_target_modules"] == ["down_proj"] and json.loads(words)["lora_local_path"] == "."


def test_vllm_is_not_offered_an_adapter_of_an_architecture_it_has_no_lora_for(tmp_path):
    make_exports(tmp_path, tiny_model())
    record = json.loads((tmp_path / "rome-peft" / RECORD).read_text())
    assert record["base"]["architecture"] in VLLM_WITHOUT_LORA
    assert [c for c in commands(record, ".") if "--model vllm" in c] == []
    assert "no LoRA for GPT2LMHeadModel" in notices(record)[0] and "to=hf" in notices(record)[0]
    assert len([c for c in in_the_card(tmp_path / "rome-hf") if "--model vllm" in c]) == 1
    del record["base"]["architecture"]  # of release 0.1: not known, so that it is offered, with a word of warning
    assert len(commands(record, ".")) == 2 and "GPT2LMHeadModel" in notices(record)[0]


def test_a_rank_over_the_limit_and_a_gguf_base_are_not_offered_either(exports):
    record = json.loads((exports / "rome-peft" / RECORD).read_text())
    assert any("LoRA on a GPU is for float16 and bfloat16" in notice for notice in notices(record))
    half = record | {"base": record["base"] | {"dtype": "bfloat16"}}
    assert not any("on a GPU" in notice for notice in notices(half))
    record["adapter"]["rank"] = 513
    assert len(commands(record, ".")) == 1 and "rank 513 is above vLLM's limit of 512" in notices(record)[0]
    record["adapter"]["rank"] = 8
    record["base"]["gguf_file"] = "model.gguf"
    assert ["gguf_file=model.gguf" in command for command in commands(record, ".")] == [True]
    assert "GGUF" in notices(record)[0]


def test_arguments_that_the_harness_would_take_apart_are_given_as_json():
    assert model_args({"pretrained": "a/b", "dtype": "float32"}) == "pretrained=a/b,dtype=float32"
    for odd in ("a,b", "a=b", "it's here", 'say "a"', "näh e"):
        (word,) = shlex.split(model_args({"pretrained": odd}))
        assert json.loads(word) == {"pretrained": odd}


def test_tasks_find_the_facts_of_an_export_where_its_folder_is_named(exports):
    adapter, checkpoint = exports / "rome-peft", exports / "memit-hf"
    for arguments in ({"pretrained": str(exports / "model"), "peft": str(adapter)}, {"pretrained": str(checkpoint)}):
        facts, asked = scheduled_facts(arguments)
        assert [fact.id for fact in asked] == [fact.id for fact in LEARNABLE]
        assert facts.source == str(export_of(arguments))
    assert [fact.id for fact in scheduled_facts({"pretrained": str(checkpoint), "n_edits": 1})[1]] == ["0"]
    assert [fact.text for fact in exported_facts(adapter)] == [fact.text for fact in LEARNABLE]
    with pytest.raises(UserError, match=r"n_edits=3: .* made with 2 facts"):
        scheduled_facts({"pretrained": str(checkpoint), "n_edits": 3})
    with pytest.raises(UserError, match=r"edit_seed=1: .* is an export"):
        scheduled_facts({"pretrained": str(checkpoint), "edit_seed": 1})
    assert export_of({"pretrained": str(exports / "model")}) is None


def test_an_export_whose_record_lists_no_facts_says_what_to_do(tmp_path):
    (tmp_path / RECORD).write_text('{"edits": {}}')
    with pytest.raises(UserError, match="lists no edited facts; make the export again, or give edit_dataset=FILE"):
        scheduled_facts({"pretrained": str(tmp_path)})
