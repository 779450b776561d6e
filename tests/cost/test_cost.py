"""The cost estimate against hand computation, and against operations counted while this package's code runs."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from benchmarks import editing as bench
from benchmarks.counting import Operations
from benchmarks.gpu_models import default_inner_params, make_archive
from lm_eval_edit import UserError, demo
from lm_eval_edit.cost.editing import FactLength, innermost, operation, second_moments
from lm_eval_edit.cost.run import SIZES, Cost, estimate, evaluation, known_tasks
from lm_eval_edit.cost.work import Device, Pass, Shape, Work
from lm_eval_edit.editors._shared import left
from lm_eval_edit.editors.base import find_editor
from lm_eval_edit.editors.memit import MemitOptions
from lm_eval_edit.tasklib.records import layouts
from lm_eval_edit.tasklib.suite import documents, prompts
from lm_eval_edit.tasklib.suite.catalogue import TASKS, record_set
from tests.conftest import ROOT
from tests.support.processes import python

GPT2_XL = Shape.of(GPT2Config(n_embd=1600, n_layer=48, n_head=25))
LLAMA_7B = Shape.of(LlamaConfig())
SMALL = bench.Size(layers=6, width=64, inner=256, vocabulary=512)
SLOW = Device("slow", half=2e3, single=1e3, double=500, bandwidth=10, memory=1e3, utilisation=0.5, seconds_per_block=3)


def test_parameters_of_the_published_models():
    assert GPT2_XL.parameters == 1_557_611_200
    assert LLAMA_7B.parameters == 6_738_415_616
    # c_attn, attention's and the MLP's projections of GPT-2: 12 d²; LLaMA: 4 d² and three matrices of d x f
    assert GPT2_XL.block_weights == 12 * 1600**2
    assert LLAMA_7B.block_weights == 4 * 4096**2 + 3 * 4096 * 11008


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=100),
        LlamaConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=90,
                    intermediate_size=48),
        GPTNeoXConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=90, intermediate_size=48),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_a_whole_pass_has_the_operations_that_are_counted(config):
    shape = Shape.of(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()  # whose products are counted
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    with torch.no_grad(), Operations() as counted:
        model(torch.zeros(3, 20, dtype=torch.long))
    assert shape.blocks(60, 3 * 20**2) + 60 * shape.head == pytest.approx(counted.total, rel=0.02)


def test_the_demo_checkpoint_has_its_own_number_of_parameters():
    config = AutoConfig.from_pretrained(demo.CHECKPOINT)
    model = AutoModelForCausalLM.from_pretrained(demo.CHECKPOINT)
    assert Shape.of(config).parameters == sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_one_evaluation_by_hand():
    prompts_, tokens, work = evaluation(GPT2_XL, {"gsm8k": 160}, batch_size=16, characters_per_token=5)
    length, spread = 601.5 / 5, 636.3 / 5
    read = 48 * (2 * 12 * 1600**2 * length + 4 * 1600 * spread**2) + 2 * 1600 * 50257
    further = 48 * (2 * 12 * 1600**2 + 4 * 1600 * (length + 2.5)) + 2 * 1600 * 50257
    assert (prompts_, tokens) == (160, 160 * (length + 5))
    assert work.flop == pytest.approx(160 * (read + 4 * further))
    assert [p.count for p in work.passes] == [10, 40]


def test_a_task_of_the_harness_is_not_ours_of_nearly_the_same_name():
    assert known_tasks(["rte", "boolq", "edithurt_rte"]) == ({"rte": None}, ["rte", "boolq"])


def test_the_suite_has_the_protocols_number_of_prompts():
    known, unknown = known_tasks(["edithurt_suite", "hellaswag"])
    assert set(known) == set(TASKS) and unknown == ["hellaswag"]
    assert evaluation(GPT2_XL, known)[0] == 26_265
    assert evaluation(GPT2_XL, known_tasks(["edithurt_sst2"], limit=7)[0])[0] == 7


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'boolq'"):
        evaluation(GPT2_XL, {"bool": None})


@pytest.mark.parametrize("task", TASKS)
def test_lengths_are_those_of_the_papers_files(data, task):
    folder = data if task == "mutual" else data / "paper_layout"  # the paper's folder holds a part of MuTual here
    docs, _ = documents.build(task, layouts.read(layouts.locate(record_set(task), folder)))
    lengths = [len(getattr(prompts, task)(doc)) for doc in docs]
    assert SIZES[task].characters == pytest.approx(sum(lengths) / len(lengths), abs=0.05)
    assert SIZES[task].spread == pytest.approx(math.sqrt(sum(n * n for n in lengths) / len(lengths)), abs=0.05)
    assert abs(len(docs) - SIZES[task].documents) <= 3


# ------------------------------------------------------------------------------------------------------ time and money


def test_a_pass_takes_the_longest_of_computing_reading_and_launching():
    shape = Shape(parameters=10, layers=2, hidden=1, inner=1, vocabulary=1, attention=1, block_weights=5)
    work = Work((Pass(count=4, flop=0, blocks=1),))
    assert work.seconds(shape, SLOW, 1) == 4 * 3  # launching; reading takes 5 bytes / (10 · 0.5) = 1 s
    assert work.seconds(shape, SLOW, 4) == 4 * 4  # reading
    assert Work((Pass(4, 5000, 1),)).seconds(shape, SLOW, 2) == 4 * 5  # computing in half precision
    assert Work((Pass(4, 5000, 1),)).seconds(shape, SLOW, 4) == 4 * 10  # in single
    assert Work(single=1000, double=500).seconds(shape, SLOW, 2) == 2 + 2


def test_a_model_beyond_one_devices_memory_holds_several():
    big = Shape(parameters=1500, layers=1, hidden=1, inner=1, vocabulary=1, attention=1, block_weights=1)
    cost = estimate(big, tasks={}, evaluations=0, loads=1, device=SLOW, weight_bytes=2)
    assert cost.gpus == 4  # 1.2 · 3000 bytes on 1000 each
    assert cost.gpu_seconds == 4 * cost.seconds and cost.weight_bytes == 3000


def test_costs_add_up():
    tasks, _ = known_tasks(["edithurt_suite"], limit=10)
    one = estimate(GPT2_XL, tasks=tasks, evaluations=1)
    three = estimate(GPT2_XL, tasks=tasks, evaluations=3, loads=3)
    total = one + one + one
    assert (total.prompts, total.gpus, total.weight_bytes) == (three.prompts, 1, three.weight_bytes)
    assert total.flop == pytest.approx(three.flop) and total.gpu_hours == pytest.approx(three.gpu_hours)
    assert total.parts == pytest.approx(three.parts) and total.seconds == pytest.approx(sum(total.parts.values()))
    assert Cost() + one == one


def test_a_utilisation_that_is_no_share_is_refused():
    with pytest.raises(UserError, match="utilisation=0"):
        Device("x", 1, 1, 1, 1, 1, utilisation=0)


# ------------------------------------------------------------------------------------- editing, against counted work

TEXT = FactLength(
    prompt=8.5, tail=2, target=2
)  # what `bench.make_facts` makes: 8 or 9 tokens, "is a" after the subject
ESTIMATED = {
    "rome": ({"layers": (2,), "v_num_grad_steps": 6}, 1),
    "r_rome": ({"layers": (2,), "v_num_grad_steps": 6}, 1),
    "memit": ({"layers": (1, 2), "v_num_grad_steps": 6, "mom2_update_weight": 15000}, 4),
    "emmet": ({"layers": (2,), "v_num_grad_steps": 6, "mom2_update_weight": 10000}, 4),
    "alphaedit": ({"layers": (1, 2), "v_num_grad_steps": 6, "nullspace_threshold": 0.01, "L2": 10}, 4),
    "memit_seq": ({"layers": (1, 2), "v_num_grad_steps": 6, "mom2_update_weight": 15000}, 4),
    "encore": (
        {
            "layers": (1, 2),
            "v_num_grad_steps": 6,
            "own_targets": True,
            "mom2_update_weight": 15000,
            "update_norm_lambda": 20,
        },
        4,
    ),
    "kn": ({"steps": 8}, 1),
    "ft": ({"layers": (4,), "num_steps": 6, "lr": 1e-6}, 1),
    "lora": ({"num_steps": 6, "layers": tuple(range(6))}, 1),
    "mend": ({"inner_loss": "exact"}, 4),
}


@pytest.mark.parametrize("method", ESTIMATED)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_edit_has_about_the_operations_that_are_counted(family, method, tmp_path):
    options, facts = ESTIMATED[method]
    comparison = bench.Bench(family, SMALL, torch.float32, "cpu", None, None)
    comparison.model.set_attn_implementation("eager")
    shape = Shape.of(comparison.model.config)
    if method == "mend":
        names = default_inner_params(comparison.model.config)
        make_archive(comparison.model.config, names, tmp_path / "mend")
        options = options | {"archive": str(tmp_path / "mend"), "inner_params": tuple(names)}
    editor_class = find_editor(method)
    editor = editor_class(editor_class.Options(**options))
    names = comparison.architecture.down_projections
    moments = bench.SecondMoments({names[layer]: comparison._moment(layer) for layer in range(SMALL.layers)})
    plan = editor.template_plan()
    context = bench.make_context(comparison.model, moments, nested=plan is not None and plan.nested)
    editor.compute(context, bench.make_facts(facts))  # the factorisations are made once, and not counted here
    left._known.clear()  # a run's next operation finds other weights, on which nothing is known
    with Operations() as counted:
        editor.compute(context, bench.make_facts(facts))
    expected = operation(shape, method, editor.describe(), TEXT, facts).flop
    assert expected == pytest.approx(counted.total, rel=0.25)


@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_at_the_last_layer_nothing_is_saved_in_blocks_that_do_not_run(method):
    work = operation(GPT2_XL, method, {"layers": (47,), "v_num_grad_steps": 3}, FactLength(10, 5, 1), 1)
    assert all(each.flop >= 0 for each in work.passes)
    back = [each for each in work.passes if each.blocks == 0]
    assert back and all(each.flop > 0 and each.flop % GPT2_XL.head == 0 for each in back), "the head alone"


def test_an_editor_that_wraps_another_costs_what_that_costs():
    assert innermost("rect", {"over": "memit"}) == "memit"
    assert innermost("random", {"like": "rect", "over": "emmet"}) == "emmet"
    assert innermost("prune", {}) == "memit"


def test_an_editor_without_an_estimate_is_named():
    with pytest.raises(UserError, match="no estimate of what easyeditor costs"):
        estimate(GPT2_XL, tasks={}, evaluations=0, editor="easyeditor", operations=[1])


def test_second_moments_are_collected_once_and_only_where_they_are_needed():
    work = second_moments(GPT2_XL, "memit", {"layers": (13, 17)}, 10**6)
    assert work.single == 2 * 6400**2 * 10**6 * 2
    assert work.passes[0].blocks == 18 and work.passes[0].count == pytest.approx(10**6 / 8192)
    assert second_moments(GPT2_XL, "kn", {}, 10**6) == Work()
    common = {"tasks": {}, "evaluations": 0, "loads": 0, "editor": "memit", "options": {"layers": (13, 17)}}
    once, twice, thrice = (estimate(GPT2_XL, operations=[1] * n, **common).flop for n in (1, 2, 3))
    assert thrice - twice == pytest.approx(twice - once) and once > twice - once  # factors and templates are made once


@pytest.mark.parametrize("own", [False, True])
def test_an_anchor_is_measured_once_over_as_many_facts_as_are_asked_for(own):
    common = {"tasks": {}, "evaluations": 0, "loads": 0, "editor": "memit", "operations": [10, 10]}

    def flop(**options):
        return estimate(GPT2_XL, options={"layers": (13, 17), "own_targets": own} | options, **common).flop

    assert flop(norm_anchor=3.0) == flop()
    one, two = flop(norm_anchor="auto", norm_anchor_facts=16) - flop(), flop(norm_anchor="a", norm_anchor_facts=32)
    assert two - flop() == pytest.approx(2 * one) and one > 0
    assert flop(norm_anchor="auto") == flop(norm_anchor="auto", norm_anchor_facts=MemitOptions().norm_anchor_facts)


def test_estimating_needs_no_torch():
    code = (
        "import sys, lm_eval_edit.cost.run as c\n"
        "s = c.Shape(10, 2, 4, 8, 10, 4, 100)\n"
        "c.estimate(s, tasks={'rte': 5}, evaluations=1, editor='rome', options={'layers': (1,)}, operations=[1])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = python("-c", code, path=ROOT)
    assert done.stdout.split() == ["False", "False"], done.stderr
