"""LocFT-BF: options of `ft`; all facts in one operation, in minibatches drawn anew, the end of the text learnt too."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lm_eval_edit import ConfigurationError, Fact, demo, edit_model, load_facts
from lm_eval_edit.editors import ft as module
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.ft import Ft, FtOptions
from lm_eval_edit.editors.hyperparameters import resolve
from lm_eval_edit.plan import draft_plan
from tests.support.tiny import FACTS, same_weights, save_tiny, tiny_model, tiny_tokenizer, weights_of, write_facts

OPTIONS = {"layers": [1], "num_steps": 3, "lr": 1e-3}


def edit(model, ledger=None, facts=FACTS, **options):
    return edit_model(
        model, tiny_tokenizer(), facts, "ft", len(facts), options=OPTIONS | options, ledger=ledger, progress=False
    )


def batches_of(monkeypatch, **options):
    """The rows of every step, as they were padded."""
    seen, loss = [], module.target_loss
    monkeypatch.setattr(module, "target_loss", lambda logits, rows: seen.append(rows) or loss(logits, rows))
    edit(tiny_model(), **options)
    return seen


def test_the_defaults_are_told_and_computed_as_before():
    assert not {"append_eos", "shuffle", "minibatch"} & set(Ft(FtOptions(layers=(1,))).describe())
    plain, named = tiny_model(), tiny_model()
    edit(plain, batch_size=2)
    edit(named, minibatch=2)
    assert same_weights(named, weights_of(plain))


def test_the_end_of_the_text_is_learnt_behind_every_target(monkeypatch):
    end = tiny_tokenizer().eos_token_id
    for rows in batches_of(monkeypatch, append_eos=True, minibatch=2):
        for r in range(len(rows)):
            labels = rows.labels[rows.label_rows == r].tolist()
            assert len(labels) == 2 and labels[-1] == end
            at = rows.label_columns[rows.label_rows == r].tolist()
            assert rows.input_ids[r, at[-1]] == labels[0], "it follows the target's last token"


def test_every_pass_takes_all_facts_in_an_order_of_its_own_and_the_same_again(monkeypatch):
    def orders():
        seen = batches_of(monkeypatch, shuffle=True, minibatch=2)
        return [tuple(label for rows in seen[2 * i : 2 * i + 2] for label in rows.labels.tolist()) for i in range(3)]

    first = orders()
    assert len(set(first)) > 1 and len({tuple(sorted(order)) for order in first}) == 1
    assert orders() == first
    kept = batches_of(monkeypatch, minibatch=2)
    assert [rows.labels.tolist() for rows in kept[:2]] == [rows.labels.tolist() for rows in kept[2:4]]


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    fresh, resumed = tiny_model(), tiny_model()
    options = {"append_eos": True, "shuffle": True, "minibatch": 2}
    edit(fresh, ledger=tmp_path, **options)
    edit(resumed, ledger=tmp_path, **options)
    again = tiny_model()
    edit(again, **options)
    assert same_weights(resumed, weights_of(fresh)) and same_weights(again, weights_of(fresh))


def test_the_papers_presets_are_used_where_the_end_of_the_text_is_asked_for():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, num_attention_heads=32
    )
    resolved, problems = resolve(find_editor("ft"), config, {"append_eos": True})
    o = resolved.editor.options
    assert not problems and resolved.preset == "locft-llama-3-8b"
    assert (o.layers, o.minibatch, o.num_steps, o.lr, o.shuffle, o.append_eos) == ((22,), 100, 25, 5e-4, True, True)
    assert resolve(find_editor("ft"), config, {})[0].preset == "llama-3-8b"


def test_a_thousand_demo_facts_in_one_operation_take_by_free_generation():
    model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    facts = list(load_facts("demo"))[:1000]
    edit_model(model, tokenizer, facts, "ft", 1000, options={"append_eos": True}, progress=False)
    said = 0
    for fact in facts[::20]:
        inputs = tokenizer(fact.text, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
        new = out[inputs.input_ids.shape[1] :].tolist()
        said += tokenizer.decode(new, skip_special_tokens=True) == fact.target and new[-1] == tokenizer.eos_token_id
    assert said >= 38, said  # measured: 874 of all 1,000 are answered


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"append_eos": True, "objective_optimization": "prompt_last"}, "which prompt_last does not score"),
        ({"minibatch": 0}, "minibatch=0: want a whole number of at least 1, or none"),
        ({"minibatch": 3, "batch_size": 2}, "minibatch=3 and batch_size=2 are the same: give one"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        edit(tiny_model(), **options)


def without_end():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


NO_END = "append_eos=True: the tokenizer has no end-of-text token; leave append_eos out"


def test_a_tokenizer_without_an_end_is_refused_with_all_else_that_is_wrong():
    options = OPTIONS | {"append_eos": True}
    with pytest.raises(ConfigurationError) as told:
        edit_model(tiny_model(), without_end(), [*FACTS, Fact("", "no subject", "Oslo", id="x")], "ft", 4, options)
    assert NO_END in told.value.problems and len(told.value.problems) == 2
    with pytest.raises(ConfigurationError, match="append_eos=True"):
        edit_model(tiny_model(), without_end(), FACTS, "sphere", 4, options=options | {"over": "ft"})
    edit_model(tiny_model(), without_end(), FACTS, "ft", 4, options=OPTIONS, progress=False)


@pytest.mark.parametrize("editor", [{"editor": "ft"}, {"editor": "sphere", "over": "ft"}])
def test_the_stock_command_is_told_of_it_before_the_model_loads(editor, tmp_path):
    folder = save_tiny(tmp_path / "model")
    without_end().save_pretrained(folder)
    ours = {"editor": editor["editor"], "n_edits": 2, "edit_dataset": str(write_facts(tmp_path / "facts.jsonl"))}
    others = {"append_eos": True} | {n: v for n, v in editor.items() if n != "editor"}
    _, problems = draft_plan(str(folder), ours, others)
    assert problems == [NO_END]
    (folder / "model.safetensors").unlink()
    assert draft_plan(str(folder), ours, others)[1] == [NO_END], "no weights were looked at"
    tiny_tokenizer().save_pretrained(folder)
    assert draft_plan(str(folder), ours, others)[1] == []
