"""The estimate for the device at hand: measured once in seconds, kept, and near what a run takes."""

from __future__ import annotations

import time

import pytest
import torch

from lm_eval_edit import cli
from lm_eval_edit.cost import measured as cost_measured
from lm_eval_edit.cost.measured import device_at_hand, measure
from lm_eval_edit.errors import UserError


def test_the_rates_are_those_of_this_machine():
    started = time.perf_counter()
    found = measure(torch.device("cpu"), seconds=0.05)
    assert time.perf_counter() - started < 10
    a = torch.randn(512, 512)
    a @ a
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    rate = 20 * 2 * 512**3 / (time.perf_counter() - started)
    assert found.single / 10 < rate < found.single * 10
    assert found.double < 2 * found.single and 1e8 < found.bandwidth < 1e13
    assert 1e-6 < found.seconds_per_block < 1 and found.memory > 1e8


def test_they_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cost_measured, "SECONDS", 0.02)
    first, now = device_at_hand("cpu", tmp_path)
    assert now
    monkeypatch.setattr(cost_measured, "measure", lambda *_: pytest.fail("measured again"))
    assert device_at_hand("cpu", tmp_path) == (first, False)


@pytest.mark.parametrize("content", ["", "[]", '{"rates": 1}', '{"rates": {"name": "x"}}'])
def test_a_damaged_measurement_is_made_anew(tmp_path, monkeypatch, content):
    monkeypatch.setattr(cost_measured, "measure", lambda device: measure(device, 0.01))
    device_at_hand("cpu", tmp_path)
    (file,) = (tmp_path / "device_rates").iterdir()
    file.write_text(content)
    assert device_at_hand("cpu", tmp_path)[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--device cuda: "):
        device_at_hand("cuda", tmp_path)


def test_a_dry_run_names_the_device_at_hand(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LM_EVAL_EDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(cost_measured, "measure", lambda device: measure(device, 0.01))
    flags = ["--pretrained", "demo", "--editors", "rome", "--n_edits", "1", "--tasks", "edithurt_sst2", "--dry_run"]
    assert cli.main(["sweep", *flags, "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "on H100 80 GB: about" in said.out and " cpu, " in said.out and "measured just now" in said.err
    assert cli.main(["sweep", *flags, "--device_rate", "a100"]) == 0
    said = capsys.readouterr()
    assert "on A100 80 GB: about" in said.out and " cpu, " not in said.out and "measured" not in said.err
    assert cli.main(["sweep", *flags, "--device_rate", "measured", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "H100" not in said.out and "as measured before" in said.err
