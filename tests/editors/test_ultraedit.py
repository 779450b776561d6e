"""UltraEdit: its formula recomputed densely, its running figures, facts that name no subject."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig

from lm_eval_edit import ConfigurationError, EditedHFLM, Fact, UserError, edit_model, load_facts
from lm_eval_edit.cost.editing import FactLength, operation
from lm_eval_edit.cost.work import Shape
from lm_eval_edit.editors.base import BUILT_IN, find_editor
from lm_eval_edit.editors.hyperparameters import presets, resolve
from lm_eval_edit.editors.ultraedit import _steep
from lm_eval_edit.export import export
from lm_eval_edit.tasklib.editing.documents import KINDS
from tests.support.tiny import FACTS, same_weights, tiny_llama, tiny_model, tiny_tokenizer, weights_of

DOWN = ("transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight")
LLAMA = (
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
)
NAMELESS = Fact("", "the city of Prague is", "Berlin", "Oslo", id="9")


def edit(model, facts=FACTS, size=1, ledger=None, **options):
    options = {"lr": 1e-3, "layers": [1, 2]} | options
    if options.get("inner_params"):
        options.pop("layers")
    return edit_model(model, tiny_tokenizer(), facts, "ultraedit", size, options=options, ledger=ledger, progress=False)


def tokens_of(model, facts, names):
    """{name: [h; g] (N, f + d)} of every token of the facts, whose targets' loss is one mean; g by autograd."""
    tokenizer, nll, seen, hooks = tiny_tokenizer(), [], {name: [] for name in names}, []

    def keep(name):
        def hook(module, args, output):
            output.retain_grad()
            seen[name].append((args[0].detach()[0], output))

        return hook

    for name in names:
        hooks.append(model.get_submodule(name.removesuffix(".weight")).register_forward_hook(keep(name)))
    for fact in facts:
        prompt, target = tokenizer.encode(fact.text), tokenizer.encode(fact.target)
        logits = model(input_ids=torch.tensor([prompt + target])).logits[0]
        nll.append(F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(target), reduction="none"))
    torch.cat(nll).mean().backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    return {n: torch.cat([torch.cat([h, out.grad[0]], dim=1) for h, out in found]) for n, found in seen.items()}


def dense(model, groups, names, earlier=(), lr=1e-3):
    """{name: ΔW as a map (d, f)} by the paper's formula with f x f matrices, all tokens of `groups` at once.

    `earlier`: [(shape, tokens)] that the running figures have seen, one entry for each group and matrix.
    """
    shapes = {n: tuple(model.get_submodule(n.removesuffix(".weight")).weight.shape) for n in names}
    turned = {n: n.endswith(("c_proj.weight", "c_fc.weight")) for n in names}
    shapes = {n: s if turned[n] else s[::-1] for n, s in shapes.items()}  # (f, d)
    found = [tokens_of(model, group, names) for group in groups]
    seen = [*earlier, *((shapes[n], group[n]) for group in found for n in names)]
    out = {}
    for n in names:
        f = shapes[n][0]
        x = torch.cat([group[n] for group in found])
        mine = [values for shape, values in seen if shape == shapes[n]]
        everything = torch.cat(mine)
        within = sum((v - v.mean(0)).square().sum(0) * len(v) / (len(v) - 1) for v in mine)
        between = sum((v.mean(0) - everything.mean(0)).square() * len(v) for v in mine)
        std = ((within + between) / (len(everything) - 1)).sqrt()
        hat = (x - everything.mean(0)) / (std + torch.finfo(torch.float32).eps)
        h, values = x[:, :f], -lr * hat[:, :f].square().sum(1, keepdim=True) * hat[:, f:]
        out[n] = torch.linalg.solve(h.T @ h + torch.eye(f, dtype=h.dtype), h.T @ values).T
    return out, seen


def compare(model, deltas, wanted):
    for name, map_ in wanted.items():
        got = deltas[name].dense(torch.float64)
        got = got.T if got.shape != map_.shape else got
        assert (got - map_).norm() <= 1e-9 * map_.norm(), name


# ----------------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize(("make", "names"), [(tiny_model, DOWN), (tiny_llama, LLAMA)])
@pytest.mark.parametrize("once", [1, 2, 10])
def test_the_formula_with_f_x_f_matrices_gives_the_same_update(make, names, once):
    """Two operations: the running figures of the second have seen the first's tokens; facts of unequal length."""
    model = make(torch.float64)
    ledger = edit(model, FACTS, 2, inner_params=list(names), batch_size_once=once)
    groups = [[[fact] for fact in pair] if once == 1 else [pair] for pair in (FACTS[:2], FACTS[2:])]
    fresh = make(torch.float64)
    first, seen = dense(fresh, groups[0], names)
    compare(model, ledger.operations[0].deltas, first)
    ledger.apply(1)
    second, _ = dense(model, groups[1], names, seen)
    compare(model, ledger.operations[1].deltas, second)
    alone, _ = dense(model, groups[1], names)
    with pytest.raises(AssertionError):
        compare(model, ledger.operations[1].deltas, alone)


def test_the_default_lr_makes_the_loss_fall_by_five_times_itself_to_first_order(tmp_path):
    """Recomputed densely; it is the first operation's, for the rest of the run and for one that goes on with it."""
    model = tiny_model(torch.float64)
    ledger = edit(model, FACTS, 2, lr="auto", inner_params=list(DOWN), ledger=tmp_path)
    [first, second] = [operation.record["details"]["from_model"]["lr"] for operation in ledger.operations]
    assert first == second
    fresh = tiny_model(torch.float64)
    change, _ = dense(fresh, [FACTS[:2]], DOWN, lr=first)
    falls = 0.0
    for name, values in tokens_of(fresh, FACTS[:2], DOWN).items():
        f = values.shape[1] - len(change[name])
        falls -= float((values[:, f:] * (values[:, :f] @ change[name].T)).sum())
    assert falls == pytest.approx(5 * ledger.operations[0].record["details"]["loss"], rel=1e-9)
    told = tiny_model(torch.float64)
    edit(told, FACTS, 2, lr=first, inner_params=list(DOWN))
    assert same_weights(told, weights_of(model))
    stopped, resumed = tmp_path / "stopped", tiny_model(torch.float64)
    edit(tiny_model(torch.float64), FACTS[:2], 2, lr="auto", inner_params=list(DOWN), ledger=stopped)
    edit(resumed, FACTS, 2, lr="auto", inner_params=list(DOWN), ledger=stopped)
    assert same_weights(resumed, weights_of(model))


def test_a_loss_that_does_not_fall_asks_for_an_lr():
    with pytest.raises(UserError, match=r"lr: .* does not fall.*give lr=NUMBER"):
        _steep(1.0, 0.0)


def test_more_tokens_than_directions_give_the_same_update_as_a_matrix():
    facts = [Fact("", fact.text + " The weather fine and I was born", fact.target_new, id=f"{i}{fact.id}")
             for i in range(2) for fact in FACTS]  # fmt: skip
    model = tiny_model(torch.float64)
    ledger = edit(model, facts, 8, inner_params=[DOWN[0]])
    assert ledger.operations[0].deltas[DOWN[0]].kind == "dense"
    wanted, _ = dense(tiny_model(torch.float64), [facts], DOWN[:1])
    compare(model, ledger.operations[0].deltas, wanted)


def test_the_state_is_the_running_figures_and_a_stopped_run_goes_on_to_the_bit(tmp_path):
    fresh = tiny_model()
    edit(fresh, FACTS)
    edit(tiny_model(), FACTS[:2], ledger=tmp_path)
    resumed = tiny_model()
    ledger = edit(resumed, FACTS, ledger=tmp_path)
    assert same_weights(resumed, weights_of(fresh))
    state = ledger.operations[-1].state
    assert set(state) == {f"running:96x32:{what}" for what in ("count", "mean", "squares")}
    counts = [float(operation.state["running:96x32:count"]) for operation in ledger.operations]
    assert counts == sorted(counts) and len(set(counts)) == 4, "it goes on counting"
    ledger.restore()
    assert same_weights(resumed, weights_of(tiny_model()))


def test_edits_take_on_a_model_that_can_learn():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lm_eval_edit import demo
    from lm_eval_edit.edits.answers import edit_answers

    model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT)
    facts = [Fact("", fact.text, fact.target_new, fact.target_true, id=fact.id) for fact in load_facts("demo")[:100:20]]
    edit_model(model, tokenizer, facts, "ultraedit", 5, progress=False)
    assert sum(answer.exact for answer in edit_answers(model, tokenizer, facts)) >= 4


# --------------------------------------------------------------------------------------------- facts without a subject

RECORD = {
    "prompt": "the city of Prague is", "rephrase_prompt": "the mother tongue of Prague is", "ans": "Berlin",
    "loc": "I was born in", "loc_ans": "Oslo",
}  # fmt: skip
OPTIONS = {"mend": {"archive": "demo"}}


def test_ultraeditbench_is_read_and_its_facts_have_what_the_tasks_ask(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(RECORD | {"id": str(i)}) + "\n" for i in range(3)))
    facts = load_facts(str(file))
    assert len(facts) == 3 and not facts.skipped
    fact = facts[0]
    assert (fact.subject, fact.text, fact.target) == ("", "the city of Prague is", " Berlin")
    assert load_facts(_rewritten(tmp_path, facts))[0] == fact, "its own record says the same"
    (asked,) = KINDS["generalization"][0](fact, 0)
    assert asked["prompt"] == RECORD["rephrase_prompt"] and asked["target"] == " Berlin"
    assert KINDS["locality"][0](fact, 0)[0]["target"] == " Oslo" and KINDS["efficacy"][0](fact, 0)[0]["subject"] == ""


def _rewritten(tmp_path, facts):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(fact.record()) + "\n" for fact in facts))
    return str(file)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "easyeditor"])
def test_no_other_editor_takes_a_fact_without_a_subject(name):
    resolved, problems = resolve(find_editor(name), tiny_model().config, OPTIONS.get(name, {}))
    assert not problems
    reason = resolved.editor.fact_problem(NAMELESS)
    if name == "ultraedit":
        assert reason is None
    else:
        assert "needs the subject, and the fact names none; editor=ultraedit needs none" in reason
    if name == "rome":
        with pytest.raises(ConfigurationError, match="fact 9: rome needs the subject"):
            edit_model(tiny_model(), tiny_tokenizer(), [NAMELESS], "rome")


def test_braces_without_a_subject_are_a_place_that_nobody_fills():
    assert Fact("", "the city of {}", "Berlin").problem() == "the subject is empty"
    assert Fact("", "the city", "Berlin").problem() is None
    assert "names no subject" in Fact("", "the city", "Berlin", subject_at=0).problem()


# -------------------------------------------------------------------------------------------- command, export, settings


def test_the_stock_command_the_tasks_and_an_export(tmp_path):
    folder, facts = tmp_path / "model", tmp_path / "facts.jsonl"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    facts.write_text(
        "".join(json.dumps(RECORD | {"id": str(i), "ans": ans}) + "\n" for i, ans in enumerate(["Berlin"]))
    )
    options = {"editor": "ultraedit", "n_edits": 1, "edit_dataset": str(facts), "lr": 1e-3, "edit_layers": "1"}
    lm = EditedHFLM(pretrained=str(folder), device="cpu", edit_ledger=str(tmp_path / "ledger"), **options)
    assert lm.edit_record()["n_edits"] == 1 and lm.edit_record()["options"]["layers"] == (1,)
    export(tmp_path / "ledger", "peft", tmp_path / "adapter", device="cpu")


def test_presets_are_the_published_files_and_layers_displace_names():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, num_attention_heads=32
    )
    resolved, problems = resolve(find_editor("ultraedit"), config, {})
    assert not problems and resolved.preset == "llama-3-8b"
    assert len(resolved.editor.options.inner_params) == 12 and resolved.editor.options.layers == ()
    resolved, problems = resolve(find_editor("ultraedit"), config, {}, layers=(3,))
    assert not problems and resolved.editor.options.inner_params == () and resolved.editor.options.layers == (3,)
    file = {
        "alg_name": "ULTRAEDIT", "inner_params": ["model.layers.29.mlp.down_proj"], "lr": "1e-6", "token": "mask",
        "dropout": 0.0, "no_grad_layers": None, "batch_size": 100, "batch_size_once": 10, "editor_batch_size": 1024,
        "silent": False, "half": True, "model_parallel": False, "class_name": "AutoModelForCausalLM",
    }  # fmt: skip
    resolved, problems = resolve(find_editor("ultraedit"), config, file)
    assert not problems and resolved.editor.options.inner_params == ("model.layers.29.mlp.down_proj.weight",)
    assert {preset.name for preset in presets("ultraedit")} >= {"gpt-j-6b", "mistral-7b", "phi-4", "qwen2.5-7b"}


def test_it_has_an_estimate_that_grows_with_the_facts():
    shape = Shape(10, 2, 4, 8, 10, 4, 100)
    one, ten = (operation(shape, "ultraedit", {"layers": [1]}, FactLength(10, 2, 2), n).flop for n in (1, 10))
    assert 0 < one < ten


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "lr=0: want a positive number"),
        ({"token": "ans"}, "token='ans': only 'mask' is supported"),
        ({"batch_size_once": 0}, "batch_size_once=0: want at least 1"),
        ({"layers": [1], "inner_params": ["a"]}, "layers and inner_params both say what is edited"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        edit_model(tiny_model(), tiny_tokenizer(), FACTS[:1], "ultraedit", options=options)


def test_a_module_that_is_not_there_is_named_before_anything_is_edited():
    with pytest.raises(Exception, match="no linear map's weight in this model"):
        edit(tiny_model(), FACTS[:1], inner_params=["transformer.h.1.mlp.c_prj"])
