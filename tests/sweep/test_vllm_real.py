"""A sweep served by a real vLLM says what the same sweep says in this process, also killed in the middle
(`make test-vllm`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.support.real_vllm import ENVIRONMENT, MARKS
from tests.support.served_sweeps import answers, cells, design_of, likelihoods, make_world

pytestmark = MARKS
VLLM = ("--engine", "vllm", "--engine_args", "enforce_eager=True", "gpu_memory_utilization=0.1")


def start(world: Path, out: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.served_sweeps", "sweep", str(world / "design.yaml"), *flags]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENT}
    log = open(out.parent / f"{out.name}.log", "a")  # noqa: SIM115  as long as the process lives
    return subprocess.Popen([*command, "-o", str(out), "--device", "cpu"], env=env, cwd=world, stdout=log, stderr=log)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny LLaMA whose heads are 32 wide: vLLM's attention on a CPU refuses narrower ones."""
    root = tmp_path_factory.mktemp("world")
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 192}
    make_world(root, **sizes)
    rome, ft = design_of(root)["editors"]
    editors = [rome, rome | {"editor": "r_rome", "label": "r_rome", "v_num_grad_steps": 8}, ft]
    (root / "design.yaml").write_text(yaml.safe_dump(design_of(root, editors=editors, n_edits=[1, 2, 4])))
    return root


def test_a_served_sweep_killed_in_the_middle_says_what_the_sweep_of_one_process_says(world, tmp_path):
    out, local = tmp_path / "served", tmp_path / "local"
    assert start(world, local).wait(280) == 0, (tmp_path / "local.log").read_text()[-3000:]
    process = start(world, out, *VLLM)
    deadline = time.monotonic() + 580
    while not (out / "tiny/rome-facts-file_order/n00001/cell.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "served.log").read_text()[-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    there = {name: (out / name / "cell.json").stat().st_mtime_ns for name in cells(out)}
    assert 1 <= len(there) < 13
    assert start(world, out, *VLLM).wait(580) == 0, (tmp_path / "served.log").read_text()[-3000:]
    assert {name: (out / name / "cell.json").stat().st_mtime_ns for name in there} == there
    assert f"{13 - len(there)} cells computed, {len(there)} kept" in (tmp_path / "served.log").read_text()

    found, wanted = answers(out), answers(local)
    told_apart = {tuple(likelihoods(said)) for said in wanted.values() if "toy_likely" in said}
    assert len(told_apart) == 10  # so that none can be served in another's place
    assert found.keys() == wanted.keys() and len(found) == 13
    records = cells(out)
    unedited = likelihoods(wanted["tiny/unedited"])
    for cell, said in found.items():
        told = records[cell]["engine"]
        if cell.endswith("n00000"):
            assert told["name"] == "transformers" and said == wanted[cell]
            continue
        assert (told["name"], told["dtype"]) == ("vllm", "float32") and said.keys() == wanted[cell].keys()
        off = max(abs(a - b) for a, b in zip(likelihoods(said), likelihoods(wanted[cell]), strict=True))
        effect = max(abs(a - b) for a, b in zip(likelihoods(wanted[cell]), unedited, strict=True))
        print(f"{cell}, {told['served']}: vLLM and transformers differ by {off:.2g}, the edits' effect is {effect:.3g}")
        assert off < 1e-3 and (effect > 100 * off or cell == "tiny/unedited")
        assert said["toy_says"] == wanted[cell]["toy_says"]
        for task in said.keys() & {"edithurt_efficacy"}:
            assert likelihoods(said, task) == pytest.approx(likelihoods(wanted[cell], task), abs=1e-5)
        if cell != "tiny/unedited":
            assert told["served"] == ("checkpoint" if "/ft-" in cell else "adapter")
