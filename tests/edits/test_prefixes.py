"""Any prefix of a ledger is the run of that length: the same weights to the last bit, the same scores."""

from __future__ import annotations

import json

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from lm_eval_edit import EditedHFLM, UserError, demo
from tests.support.tiny import same_weights, weights_of

MEMIT = {"v_num_grad_steps": 4, "layers": [0]}
SCHEDULES = {
    "rome": ({"editor": "rome", "edit_config": {"v_num_grad_steps": 4}}, 1),
    "memit": ({"editor": "memit", "edit_config": MEMIT}, 2),
    "alphaedit": ({"editor": "alphaedit", "edit_config": MEMIT}, 2),
    "memit_seq": ({"editor": "memit_seq", "edit_config": MEMIT}, 2),
    "prune": ({"editor": "prune", "edit_config": {"over": "rome", "alpha": 50.0, "v_num_grad_steps": 20}}, 1),
}
LAST = 4
TASK = """
task: facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_target: 0
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    """A small task: the demo world's facts, the true object against another one."""
    folder = tmp_path_factory.mktemp("tasks")
    facts = [json.loads(line) for line in (demo.DATA / "facts.jsonl").read_text().splitlines()][:60]
    docs = [
        {"prompt": f["prompt"].replace("{}", f["subject"]), "choices": [f["target_true"], f["target_new"]]}
        for f in facts
    ]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)))
    (folder / "facts.yaml").write_text(TASK.format(file=folder / "docs.jsonl"))
    return TaskManager(include_path=str(folder), include_defaults=False)


def log_likelihoods(lm, manager):
    results = lm_eval.evaluate(lm, manager.load(["facts"]), bootstrap_iters=0, log_samples=True)
    return results["results"]["facts"]["acc,none"], [s["filtered_resps"] for s in results["samples"]["facts"]]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prefix_equals_a_fresh_run(tmp_path, manager, name):
    options, batch = SCHEDULES[name]
    common = options | {"edit_batch_size": batch, "device": "cpu"}
    EditedHFLM(**common, n_edits=LAST, edit_ledger=str(tmp_path))
    stored = sorted(path.read_bytes() for path in (tmp_path / "ops").iterdir())
    fingerprints, answers = set(), []
    for n in range(0, LAST + 1, batch):
        replayed, fresh = EditedHFLM(**common, n_edits=n, edit_ledger=str(tmp_path)), EditedHFLM(**common, n_edits=n)
        assert replayed.ledger.n_edits == n
        assert replayed.weights_fingerprint == fresh.weights_fingerprint
        assert same_weights(replayed.model, weights_of(fresh.model))
        answers.append(log_likelihoods(replayed, manager))
        assert answers[-1] == log_likelihoods(fresh, manager)
        fingerprints.add(replayed.weights_fingerprint)
    assert len(fingerprints) == len(answers), "every prefix is another model"
    assert all(later != answers[0] for later in answers[1:]), "the edits must show in the answers"
    assert sorted(path.read_bytes() for path in (tmp_path / "ops").iterdir()) == stored


def test_prune_corrects_every_prefix_anew(tmp_path):
    """Otherwise the case above would be one of ROME's."""
    options, _ = SCHEDULES["prune"]
    pruned = EditedHFLM(**options, n_edits=LAST, edit_ledger=str(tmp_path), device="cpu")
    corrections = []
    for n in range(1, LAST + 1):
        pruned.ledger.replay(n)
        found = pruned.ledger.finish(pruned.ledger.weights.changes())
        corrections.append(sum(delta.norm() for delta in found.values()))
    assert corrections[-1] > 0 and len(set(corrections)) > 1


def test_a_prefix_that_ends_within_an_operation_is_refused(tmp_path):
    options, batch = SCHEDULES["memit"]
    common = options | {"edit_batch_size": batch, "device": "cpu", "edit_ledger": str(tmp_path)}
    EditedHFLM(**common, n_edits=LAST)
    with pytest.raises(UserError, match="it edits 2 facts at once, so use n_edits=2 or n_edits=4"):
        EditedHFLM(**common, n_edits=3)
    assert len(list((tmp_path / "ops").glob("*.json"))) == 2
