"""A Ray whose nodes have `stand_in_vllm`: `python -m tests.support.stand_in_on_ray ADDRESS ARGUMENTS`.

The arguments are those of `lm-eval-edit`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT
from tests.support import stand_in_vllm

MEMORY = 100 * 2**20


def set_up() -> None:
    """Be the vLLM of this process, and let it know no tasks but those of the tests. Run by every worker of Ray."""
    from lm_eval_edit.sweep import evaluation
    from tests.support.served_sweeps import quick_index

    stand_in_vllm.install(Path(tempfile.mkdtemp(prefix="stand_in")))
    evaluation.task_manager = quick_index


@contextmanager
def nodes_of_ray(count: int) -> Iterator[str]:
    """The address of a Ray cluster of nodes with room for one task each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(**node)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def main(address: str, arguments: list[str]) -> int:
    import ray

    from lm_eval_edit.cli import main as command

    set_up()
    told = {name: value for name, value in os.environ.items() if name.startswith("STAND_IN")}
    told["PYTHONPATH"] = str(ROOT)
    hook = {"worker_process_setup_hook": "tests.support.stand_in_on_ray.set_up", "env_vars": told}
    ray.init(address=address, log_to_driver=False, runtime_env=hook)
    try:
        return command(arguments)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
