"""Presets of other papers' protocols, and what designs need for them: examples, chat templates, a source."""

from __future__ import annotations

import json

import pytest

from lm_eval_edit.cli import main
from lm_eval_edit.comparison.verdicts import Settings
from lm_eval_edit.errors import ConfigurationError, UserError
from lm_eval_edit.harness.our_tasks import our_names
from lm_eval_edit.plots import choose
from lm_eval_edit.report.budget import MEAN, WORST, drops
from lm_eval_edit.report.comparing import compare_sweep
from lm_eval_edit.sweep import checking, folder
from lm_eval_edit.sweep.parsing import parse_design, preset_names, read_design
from lm_eval_edit.sweep.reading import load_sweep
from tests.support import small_sweeps

PROTOCOLS = ("alphaedit_glue", "crispedit", "lifelong_3000")
GIVEN = {"models": "demo", "editors": "rome", "n_edits": 1, "tasks": ["edithurt_rte", "edithurt_sst2"]}


def test_every_preset_says_where_it_is_from():
    assert set(PROTOCOLS) < set(preset_names())
    for name in preset_names():
        design = read_design(name, {})
        assert "arXiv" in (design.source or design.published["source"]), name


def test_the_protocols():
    glue, crisp, lifelong = (read_design(name, {}) for name in PROTOCOLS)
    assert (glue.n_edits, glue.edit_batch_size, glue.datasets) == ((500, 1000, 1500, 2000), (100,), ("counterfact",))
    assert glue.tasks == ("edithurt_glue", "edithurt_counterfact") and glue.edit_seeds == (None,)
    assert crisp.limit == 200 and crisp.apply_chat_template and crisp.fewshot_as_multiturn
    assert crisp.num_fewshot == {"ifeval": 0, "truthfulqa_mc2": 0, "mmlu": 5, "gsm8k_cot": 8, "arc_challenge": 25}
    assert lifelong.n_edits[-1] == 3000 and lifelong.stop_at_perplexity == 1000


def test_a_preset_is_named_with_its_mark_or_without():
    assert read_design("preset:crispedit", {}) == read_design("crispedit", {})
    with pytest.raises(UserError, match="Did you mean 'crispedit'"):
        read_design("preset:crisp_edit", {})


def test_overrides_of_tasks_take_their_examples_along():
    design = read_design("crispedit", {"tasks": ["mmlu", "wikitext"], "models": ["smollm2"], "editors": ["memit"]})
    assert design.tasks == ("mmlu", "wikitext") and design.num_fewshot == {"mmlu": 5}
    assert [model.pretrained for model in design.models] == ["smollm2"] and design.datasets == ("known_facts",)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_fewshot": {"mmlu": 5}}, "num_fewshot: mmlu: not among the tasks"),
        ({"num_fewshot": {"edithurt_rte": -1}}, "num_fewshot: got -1, want a mapping of the tasks' names"),
        ({"num_fewshot": 5}, "num_fewshot: got 5, want a mapping"),
        ({"apply_chat_template": "yes"}, "apply_chat_template: got 'yes', want true or false"),
        ({"fewshot_as_multiturn": True}, "turns of a chat only with apply_chat_template"),
    ],
)
def test_what_contradicts_itself_is_refused(change, why):
    with pytest.raises(ConfigurationError, match=why):
        parse_design(GIVEN | change, "the test")


def test_a_folder_that_was_begun_without_the_new_keys_is_still_its_designs():
    plain = parse_design(GIVEN, "the test").identity()
    assert not {"num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "source"} & plain.keys()
    asked = parse_design(GIVEN | {"num_fewshot": {"edithurt_rte": 2}, "apply_chat_template": True}, "it").identity()
    assert asked["num_fewshot"] == {"edithurt_rte": 2} and asked["apply_chat_template"] is True


def test_a_model_without_a_chat_template_is_refused_before_it_loads(tmp_path):
    told = r"apply_chat_template: demo: .* no chat template; .*Leave apply_chat_template out"
    with pytest.raises(ConfigurationError, match=told):
        checking.check(parse_design(GIVEN | {"apply_chat_template": True}, "it"), folder.SweepFolder(tmp_path))


def test_ls_presets_tells_sources_and_one_in_full(capsys):
    assert main(["ls", "presets"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(name in told for name in preset_names()) and "[CrispEdit (arXiv 2602.15823)" in told
    assert main(["ls", "presets", "crispedit"]) == 0
    told = capsys.readouterr().out
    assert "alphaedit (batches of 100), locft (one batch)" in told and "mmlu (5-shot)" in told
    assert "source      CrispEdit (arXiv 2602.15823)" in told and "through the chat template" in told
    assert main(["ls", "presets", "crispedits"]) == 1
    assert "Did you mean 'crispedit'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_dry_run_works_offline(name, tmp_path):
    from tests.support.console_scripts import lm_eval

    missing = [task for task in read_design(name, {}).tasks if task.startswith("edithurt_") and task not in our_names()]
    if missing:
        pytest.skip(f"this checkout has no {', '.join(missing)}")
    told = lm_eval("sweep", f"preset:{name}", "--dry_run", program="lm-eval-edit", cwd=tmp_path)
    assert f"{name}: " in told.stdout and "llama-3-8b: meta-llama/Meta-Llama-3-8B-Instruct" in told.stdout
    assert "estimate, nothing of it being there yet" in told.stdout and "its rows are not checked" in told.stderr
    if name == "crispedit":
        assert "gsm8k_cot (8-shot), arc_challenge (25-shot), through the chat template" in told.stdout
    assert not any(tmp_path.iterdir())


TOY = """\
task: toy
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
fewshot_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{q}}}} A:"
doc_to_choice: ["yes", "no"]
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""


def test_examples_and_chat_template_reach_the_prompts_and_the_record(tmp_path):
    from lm_eval_edit import EditedHFLM
    from lm_eval_edit.sweep.evaluation import Evaluator, Manner

    rows = [json.dumps({"q": f"is it {i}", "gold": i % 2}) + "\n" for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(rows[:8]))
    (tmp_path / "test.jsonl").write_text("".join(rows[8:]))
    (tmp_path / "toy.yaml").write_text(TOY.format(folder=tmp_path))
    (tmp_path / "toys.yaml").write_text("group: toys\ntask: [toy]\n")
    lm = EditedHFLM(pretrained="demo", editor="none", device="cpu")
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    how = {"limit": 2, "include_path": str(tmp_path), "batch_size": 4}

    def first_prompt(manner):
        evaluation = Evaluator(lm, ["toys"], (), {"pretrained": "demo"}, **how, manner=manner).run(
            {"pretrained": "demo"}
        )
        return evaluation.samples["toy"][0]["arguments"]["gen_args_0"]["arg_0"], evaluation.results

    prompt, results = first_prompt(Manner())
    assert prompt == "Q: is it 8 A:" and results["n-shot"]["toy"] == 0 and results["chat_template"] is None
    prompt, results = first_prompt(Manner({"toys": 3}))
    assert prompt.count("Q:") == 4 and prompt.endswith("Q: is it 8 A:") and results["n-shot"]["toy"] == 3
    prompt, results = first_prompt(Manner({"toy": 1}, apply_chat_template=True, fewshot_as_multiturn=True))
    assert prompt.count("<user>") == 2 and prompt.endswith("<user>Q: is it 8 A:<assistant>")
    assert results["chat_template"] == lm.tokenizer.chat_template and results["fewshot_as_multiturn"] is True


def test_a_perplexity_beside_scores_is_drawn_told_and_no_part_of_the_budget(tmp_path):
    tasks = ["edithurt_sst2_mc", "edithurt_nq_mc", "edithurt_perplexity"]
    small_sweeps.sweep(tmp_path, tasks=tasks, n_edits=[0, 2])
    sweep = load_sweep(tmp_path)
    (cell,) = compare_sweep(sweep, Settings())
    assert set(cell.headlines) == set(tasks) and set(cell.judged) == {"edithurt_sst2_mc", "edithurt_nq_mc"}
    assert set(cell.mean.members) == set(cell.judged)
    assert all(
        drop is not None and abs(drop) <= 1
        for scope in (MEAN, WORST)
        for _, drop in drops([cell], scope, certain=False)
    )
    drawn = {choice.metric: choice.tasks for choice in choose(sweep)}
    assert drawn == {"score": ("edithurt_sst2_mc", "edithurt_nq_mc"), "bits_per_byte": ("edithurt_perplexity",)}
    scores, bits = choose(sweep)
    assert bits.said(bits.series) == ["lower is better"] and "lower is better" not in scores.said(scores.series)
    (logs,) = choose(sweep, metric="gold_logprob")
    assert logs.tasks == ("edithurt_sst2_mc", "edithurt_nq_mc")
