"""Reading and pairing results: every layout of lm-eval, and an error for whatever cannot be paired."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lm_eval_edit.comparison import baseline
from lm_eval_edit.comparison.pairing import PairingError, pair_runs
from lm_eval_edit.comparison.results import load_run
from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.suite import aggregate
from tests.support.results_files import DATE, answers, sample, samples, write_run

pytestmark = pytest.mark.libraries

LATER = "2026-01-02T04-00-00"


def test_a_file_a_folder_and_the_newest_of_several(tmp_path):
    first = write_run(tmp_path / "a", {"t": samples([1, 0])})
    assert load_run(first).path == load_run(tmp_path).path == first
    second = write_run(tmp_path / "a", {"t": samples([1, 1])}, date=LATER)
    run = load_run(tmp_path)
    assert run.path == second and run.samples["t", "none"].metrics["acc"].value == 1
    assert run.notices == (f"{tmp_path} holds 2 results files; the newest is taken: {second.name}",)
    write_run(tmp_path / "b", {"t": samples([1, 0])})
    with pytest.raises(UserError, match=r"holds results of 2 models \(a, b\); name one of them"):
        load_run(tmp_path)


def test_a_json_output_path_and_a_renamed_file(tmp_path):
    """`--output_path x.json` gives x_DATE.json; a file without date is accepted while its samples are not ambiguous."""
    file = write_run(tmp_path, {"t": samples([1, 0])})
    file = file.rename(tmp_path / f"x_{DATE}.json")
    assert load_run(tmp_path).path == file
    file = file.rename(tmp_path / "base.json")
    assert load_run(file).tasks == ["t"]
    write_run(tmp_path, {"t": samples([1, 0])}, date=LATER)
    with pytest.raises(UserError, match="has no date in its name and 2 samples files of t beside it"):
        load_run(file)


@pytest.mark.parametrize("version", ["0.4.12", "0.4.13"])
def test_both_versions(tmp_path, version):
    """0.4.12 counts a task's documents by its last metric, here by one that half the documents have."""
    rows = [sample(i, {"acc": float(i % 2), "rare": 1.0} if i >= 5 else {"acc": float(i % 2)}) for i in range(10)]
    run = load_run(write_run(tmp_path, {"t": rows}, version=version))
    effective = run.results["n-samples"]["t"]["effective"]
    assert effective == (5 if version == "0.4.12" else 10)
    found = run.samples["t", "none"]
    assert len(found) == 10 and list(found.metrics) == ["acc"]
    assert found.left_out == {"rare": "5 documents have no value"}


def test_a_field_that_the_first_document_lacks_still_makes_clusters(tmp_path):
    docs = [{"question": "?"}, {"passage": ""}, {"passage": "a"}, {"passage": "b"}, {"passage": "a"}, {"question": "!"}]
    rows = [sample(i, {"acc": 1.0}, doc=doc) for i, doc in enumerate(docs)]
    write_run(tmp_path, {"t": rows})
    found = load_run(tmp_path).samples["t", "none"]
    assert found.cluster_field == "passage" and found.clusters.tolist() == [0, 1, 2, 3, 2, 4]


def test_several_filters_repeats_and_rows_in_any_order(tmp_path):
    rows = [
        sample(i, {"exact_match": float(i < k)}, filter=name, resps=[["a", "b"]])
        for name, k in (("strict", 3), ("flexible", 6))
        for i in reversed(range(8))
    ]
    run = load_run(write_run(tmp_path, {"t": rows}))
    assert [(key, found.metrics["exact_match"].value) for key, found in run.samples.items()] == [
        (("t", "strict"), 0.375), (("t", "flexible"), 0.75),
    ]  # fmt: skip
    assert run.samples["t", "strict"].doc_id.tolist() == list(range(8))
    line = run.samples["t", "strict"].line(2)
    assert (line["doc_id"], line["filter"]) == (2, "strict")


def test_metrics_that_are_not_numbers_and_helpers_are_left_out(tmp_path):
    values = {"bleu": ("a", "b"), "score": 0.5, "score_stderr": [0, 0.5], "custom": 0.0}
    aggregations = {"bleu": "bleu", "custom": "def count(items):\n    return sum(items)\n", "score": "mean"}
    run = load_run(write_run(tmp_path, {"t": [sample(i, values) for i in range(4)]}, aggregations=aggregations))
    found = run.samples["t", "none"]
    assert list(found.metrics) == ["score"]
    assert found.left_out == {
        "bleu": "its aggregation (bleu) is not one that can be recomputed",
        "custom": "its aggregation (count) is not one that can be recomputed",
    }


def test_a_figure_that_its_documents_do_not_lead_to_is_left_out(tmp_path):
    run = load_run(write_run(tmp_path, {"t": samples([1, 0, 1])}, results={"t": {"acc,none": 0.9}}))
    assert run.samples["t", "none"].left_out == {"acc": "the values logged for its documents do not lead to its figure"}


def test_corpus_metrics(tmp_path):
    from sklearn.metrics import f1_score, matthews_corrcoef

    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 2, (30, 2)).tolist()
    entities = [(i // 4, *sorted(rng.integers(0, 4, 3).tolist())) for i in range(30)]
    scripts = [(i // 4, ("PER", "LOC", "ORG", "MISC")[i % 4], int(rng.integers(0, 2)), 1) for i in range(30)]
    likelihoods = rng.normal(-3, 1, 30).tolist()
    rows = [
        sample(i, {"f1": pairs[i], "mcc": pairs[i], "ner": entities[i], "old": scripts[i], "perplexity": likelihoods[i],
                   "word_perplexity": (likelihoods[i], 7), "inst": [True, i % 2 == 0]})
        for i in range(30)
    ]  # fmt: skip
    aggregations = {
        "f1": "f1", "mcc": "mcc", "ner": "def entity_f1(items: Sequence) -> float:\n    ...\n",
        "old": "<function entity_script at 0x7f>", "perplexity": "perplexity", "word_perplexity": "weighted_perplexity",
        "inst": "def agg_inst_level_acc(items):\n    ...",
    }  # fmt: skip
    gold, said = zip(*pairs, strict=True)
    expected = {
        "f1": f1_score(gold, said), "mcc": matthews_corrcoef(gold, said), "ner": aggregate.entity_f1(entities),
        "old": aggregate.entity_script(scripts), "perplexity": np.exp(-np.mean(likelihoods)),
        "word_perplexity": np.exp(-np.mean(likelihoods) / 7), "inst": 0.75,
    }  # fmt: skip
    figures = {"t": {f"{name},none": float(value) for name, value in expected.items()}}
    run = load_run(write_run(tmp_path, {"t": rows}, aggregations=aggregations, results=figures))
    found = run.samples["t", "none"]
    assert {name: metric.value for name, metric in found.metrics.items()} == pytest.approx(expected)
    assert not found.left_out


def test_clusters(tmp_path):
    docs = [{"passage": f"p{i // 3}", "question": i} for i in range(9)]
    rows = [sample(i, {"acc": 1.0}, doc=doc) for i, doc in enumerate(docs)]
    alone = [sample(i, {"acc": 1.0}, doc={"context": "Answer the question.", "premise": f"{i}"}) for i in range(4)]
    file = write_run(tmp_path, {"shared": rows, "alone": alone})
    run = load_run(file)
    assert run.samples["shared", "none"].cluster_field == "passage"
    assert run.samples["shared", "none"].clusters.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert run.samples["alone", "none"].cluster_field is None, (
        "one text for all is an instruction; a new one each is none"
    )
    assert load_run(file, cluster="none").samples["shared", "none"].cluster_field is None
    assert load_run(file, cluster="question").samples["shared", "none"].cluster_field is None


def test_answers_of_choices_are_compared_by_which_is_likeliest(tmp_path):
    def choices(*likelihoods):
        return sample(0, {"acc": 1.0}, filtered_resps=[[f"{value}", "False"] for value in likelihoods])

    runs = [
        load_run(write_run(tmp_path / name, {"t": [choices(*values)]}))
        for name, values in (("a", (-1.0, -2.0)), ("b", (-1.0000004, -2.3)), ("c", (-3.0, -2.0)))
    ]
    first, second, third = (run.samples["t", "none"].answers[0] for run in runs)
    assert first == second != third


# ------------------------------------------------------------------------------------------------------ unusable files


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / f"samples_t_{DATE}.jsonl").unlink(), r"the samples of t are missing; were files moved"),
        (
            lambda d: [f.unlink() for f in d.glob("samples_*")],
            "has no samples_.*.jsonl beside it; run lm_eval with --log_s",
        ),
        (lambda d: [f.unlink() for f in d.iterdir()], r"holds no results_\*.json; run lm_eval with --output_path"),
        (
            lambda d: edit_samples(d, lambda lines: lines[:-1]),
            "is incomplete: 3 documents of filter 'none', the results co",
        ),
        (lambda d: edit_samples(d, lambda lines: lines * 2), "document 0 is there twice under filter 'none'; two runs"),
        (
            lambda d: edit_samples(d, lambda lines: [*lines[:2], '{"doc_id"']),
            r"line 3: not a sample of lm_eval \(Expect",
        ),
        (lambda d: edit_samples(d, lambda lines: ["{}"]), r"line 1: not a sample of lm_eval \(no 'filter'\)"),
        (lambda d: edit_samples(d, lambda lines: []), "is empty"),
        (
            lambda d: (d / f"results_{DATE}.json").write_text("[1]"),
            "is no results file of lm_eval: it has no 'results'",
        ),
        (lambda d: (d / f"results_{DATE}.json").write_text("{"), "line 1: not JSON"),
    ],
)
def test_unusable_results(tmp_path, break_it, message):
    write_run(tmp_path, {"t": samples([1, 0, 1, 1]), "u": samples([1])})
    break_it(tmp_path)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path)


def edit_samples(folder, change):
    file = folder / f"samples_t_{DATE}.jsonl"
    file.write_text("".join(f"{line}\n" for line in change(file.read_text().splitlines())))


def test_no_such_folder():
    with pytest.raises(UserError, match=r"nowhere: no such file or folder; give a results_\*.json"):
        load_run("nowhere")


# ------------------------------------------------------------------------------------------------------------- pairing

BASE = samples([1, 0, 1, 1])


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ({"t": BASE[:3]}, {"config": {"limit": 3.0}}, r"4 documents against 3, 3 in common \(limit: None against 3"),
        ({"t": samples([1, 0, 1, 1], prompt="Q")}, {}, r"the prompts of 4 of 4 documents differ \(first: doc_id 0\)$"),
        (
            {"t": samples([1, 0, 1, 1], prompt="Q")}, {"chat_template_sha": "ab", "config": {"fewshot_seed": 7}},
            r"differs between the runs: chat template, few-shot seed \(None against 7\)",
        ),
        ({"t": samples([1, 0, 1, 1], doc={"q": 1})}, {}, "t: the documents of 4 of 4 documents differ"),
        ({"t": samples([1, 0, 1, 1], target_hash="0" * 64)}, {}, "t: the targets of 4 of 4 documents differ"),
        ({"t": BASE}, {"configs": {"t": {"num_fewshot": 5}}}, "t: few-shot examples: 0 against 5"),
        ({"t": BASE}, {"configs": {"t": {"generation_kwargs": {"until": ["\n"]}}}}, "generation settings: .* against"),
        ({"t": BASE}, {"versions": {"t": 2.0}}, "t: version 1.0 of the task against version 2.0"),
        ({"t": samples([1, 0, 1, 1], "em")}, {}, r"t: only one of the runs has metric acc \(absent\), em \(absent\)"),
        ({"t": samples([1, 0, float("nan"), 1])}, {}, r"acc of edited is not finite on 1 documents \(first: doc_id 2"),
        ({"u": BASE}, {}, r"only .* has t; to compare fewer tasks name them with --tasks"),
    ],
)  # fmt: skip
def test_what_does_not_pair_is_an_error_that_says_what_differs(tmp_path, tasks, changes, message):
    base = load_run(write_run(tmp_path / "a", {"t": BASE}))
    edited = load_run(write_run(tmp_path / "b", tasks, **changes))
    with pytest.raises(PairingError, match=message):
        pair_runs(base, edited)


def test_a_figure_that_is_not_finite_does_not_pair(tmp_path):
    """Log-likelihoods may be finite where their perplexity is not."""
    layout = {"aggregations": {"perplexity": "perplexity"}, "results": {"t": {"perplexity,none": None}}}
    base, edited = (
        load_run(write_run(tmp_path / name, {"t": samples([value] * 3, "perplexity")}, **layout))
        for name, value in (("a", -2.0), ("b", -2000.0))
    )
    with pytest.raises(PairingError, match="t: perplexity of edited is inf"):
        pair_runs(base, edited)


def test_functions_dumped_with_their_address_are_the_same(tmp_path):
    runs = [
        load_run(
            write_run(tmp_path / at, {"t": BASE}, configs={"t": {"filter_list": [{"f": f"<function f at {at}>"}]}})
        )
        for at in ("0x7f01", "0x7f02")
    ]
    assert len(pair_runs(*runs)) == 1


def test_choosing_tasks(tmp_path):
    base = load_run(write_run(tmp_path / "a", {"t": BASE, "u": BASE}))
    edited = load_run(write_run(tmp_path / "b", {"t": BASE}))
    assert list(pair_runs(base, edited, ["t"])) == [("t", "none")]
    with pytest.raises(UserError, match=r"no task tt in .* Did you mean 't'"):
        pair_runs(base, edited, ["tt"])


# ----------------------------------------------------------------------------------------------------- frozen baselines


def frozen_run(tmp_path):
    ner = [
        sample(i, {"score": (i // 4, i % 2, 1, 1), "valid": 1.0}, doc={"sentence_id": i // 4, "i": i})
        for i in range(12)
    ]
    items = [row["score"] for row in ner]
    folder = tmp_path / "run"
    write_run(
        folder, {"t": samples(answers(20, 4)), "ner": ner},
        aggregations={"score": "def entity_f1(items):\n"}, results={"ner": {"score,none": aggregate.entity_f1(items)}},
    )  # fmt: skip
    return load_run(folder)


def test_a_frozen_baseline_pairs_as_the_run_it_was_made_from(tmp_path):
    run = frozen_run(tmp_path)
    baseline.freeze(run, tmp_path / "base.json")
    thawed = load_run(tmp_path / "base.json")
    pairs = pair_runs(thawed, run)
    assert list(pairs) == list(run.samples)
    for pair in pairs.values():
        assert not pair.answers_changed.any() and pair.base.cluster_field == pair.edited.cluster_field
        for name, metric in pair.base.metrics.items():
            assert np.array_equal(metric.counts, pair.edited.metrics[name].counts)
    with pytest.raises(UserError, match="a frozen baseline holds no texts"):
        thawed.samples["t", "none"].line(0)


def test_a_frozen_baseline_holds_no_texts_and_a_line_per_document(tmp_path):
    baseline.freeze(frozen_run(tmp_path), tmp_path / "base.json")
    text = (tmp_path / "base.json").read_text()
    assert "Question" not in text and "Q1" not in text and "yes" not in text
    assert len(text.splitlines()) < 32 + 150 and json.loads(text)["format"] == "lm-eval-edit baseline"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1,', '"version": 2,', "is a baseline of format 2, this version reads 1; freeze it again"),
        ('"value": 0.8', '"value": 0.9', "t acc is 0.9 in its head but 0.8 by its rows; freeze it again"),
        ('"columns"', '"rows": 3, "columns"', "is a damaged baseline|by its rows"),
        ('"filter": "none"', '"felter": "none"', r"is a damaged baseline \(KeyError: 'filter'\); freeze it again"),
    ],
)
def test_a_baseline_changed_by_hand(tmp_path, old, new, message):
    baseline.freeze(frozen_run(tmp_path), tmp_path / "base.json")
    text = (tmp_path / "base.json").read_text()
    assert old in text
    text = text.replace(old, new, 1)
    if '"rows": 3' in new:
        text = text.replace(', "rows": [', ', "lines": [', 1)
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path / "base.json")
