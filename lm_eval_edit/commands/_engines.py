"""The engines of `lm-eval-edit sweep`: their options, what is told before a model loads, and what computes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lm_eval_edit.errors import ConfigurationError, UserError, problems_of
from lm_eval_edit.harness.engines import TRANSFORMERS, VLLM

LOCAL, RAY = "local", "ray"  # and VLLM: what `--engine` takes
_ONLY = {
    LOCAL: ("share_blocks",),
    RAY: ("address", "gpus_per_task", "cpus_per_task"),
    VLLM: ("tensor_parallel_size", "data_parallel_size", "engine_args"),
}


@dataclass(frozen=True)
class Choice:
    """An engine that was chosen.

    Attributes:
        name: Of what evaluates, as `harness.engines` names it and cells record it.
        compute: A checked sweep -> what was done.
        examine: A checked sweep -> why this engine cannot run it, as sentences.
        lines: A checked sweep -> what a dry run says beside its cells.
        problems: Why it cannot run at all; only in a dry run, which is shown all the same.
    """

    name: str
    compute: Callable[[Any], Any]
    examine: Callable[[Any], list[str]] = lambda checked: []
    lines: Callable[[Any], list[str]] = lambda checked: []
    problems: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the engines' options."""
    parser.add_argument(
        "--engine",
        choices=(LOCAL, RAY, VLLM),
        default=LOCAL,
        help="local: in this process; ray: as tasks of Ray; vllm: edited in this process, then served by vLLM",
    )
    parser.add_argument(
        "--serve",
        choices=(VLLM,),
        help="with --engine ray: rows are edited as tasks, then served by one vLLM on each node that has room for it",
    )
    parser.add_argument(
        "--share_blocks",
        type=float,
        metavar="GIB",
        help="with --engine local: run the blocks below the edits once for all checkpoints, and keep what leaves them "
        "in so many GiB of the device's memory; figures are the same to the last bit",
    )
    parser.add_argument("--address", help="of a Ray cluster, or auto; default: a Ray on this machine, for this run")
    parser.add_argument(
        "--gpus_per_task", type=float, metavar="N", help="of a Ray task; default: 1 where the cluster has any"
    )
    parser.add_argument(
        "--cpus_per_task", type=float, metavar="N", help="of a Ray task; default: 1 beside a GPU, else torch's threads"
    )
    parser.add_argument("--tensor_parallel_size", type=int, metavar="N", help="GPUs that vLLM splits the model over")
    parser.add_argument("--data_parallel_size", type=int, metavar="N", help="replicas of vLLM's engine (needs Ray)")
    parser.add_argument(
        "--engine_args",
        nargs="+",
        metavar="name=value",
        help="further arguments of vLLM: gpu_memory_utilization=0.8 max_model_len=4096 enforce_eager=True",
    )


def check_options(args: argparse.Namespace) -> None:
    """Check that no option of another engine is given.

    Raises:
        UserError: naming them.
    """
    if args.serve is not None and args.engine != RAY:
        raise UserError(
            f"--serve {args.serve}: only with --engine ray, whose nodes serve; on this machine alone: --engine vllm"
        )
    if args.share_blocks is not None and not 0 < args.share_blocks < float("inf"):
        raise UserError(f"--share_blocks {args.share_blocks:g}: want GiB of memory, a number above 0, such as 4")
    chosen = {args.engine, args.serve}
    for engine, flags in _ONLY.items():
        given = [f"--{flag}" for flag in flags if getattr(args, flag) is not None]
        if engine in chosen or not given:
            continue
        said = f"{', '.join(given)}: only with --engine {engine}"
        if (args.engine, engine) == (VLLM, RAY):
            said += (
                "; the rows of a sweep are served by one vLLM on this machine, over several GPUs with "
                "--tensor_parallel_size or --data_parallel_size. For several machines: --engine ray --serve vllm"
            )
        if (args.engine, engine) == (RAY, VLLM):
            said += ", or with --engine ray --serve vllm"
        raise UserError(said)


def choose(args: argparse.Namespace) -> Choice:
    """The engine; one that is not there, or cannot do what is asked, is told here.

    Raises:
        UserError: with every problem.
    """
    if args.engine == RAY:
        from lm_eval_edit.sweep import ray_engine

        ray_engine.find_ray()
        resources = ray_engine.Resources(args.address, args.gpus_per_task, args.cpus_per_task, args.device)
        if args.serve == VLLM:
            return _vllm_on_ray(args, resources)
        ray_engine.check_resources(resources)
        return Choice(TRANSFORMERS, lambda checked: ray_engine.run_sweep(checked, resources))
    from lm_eval_edit.models.devices import find_device

    device = find_device(args.device, "--device ")
    if args.engine == VLLM:
        return _vllm(args, device)
    from lm_eval_edit.sweep import engine, shared_blocks

    share = args.share_blocks
    return Choice(
        TRANSFORMERS,
        lambda checked: engine.run_sweep(checked, device=device, share_blocks=share),
        lines=lambda checked: [] if share is None else shared_blocks.share_lines(checked, share),
    )


def _vllm(args: argparse.Namespace, device: str) -> Choice:
    from lm_eval_edit.sweep import routes, serving

    arguments, version = _engine_args(args), None
    problems: list[str] = []
    try:
        version = serving.check_arguments(arguments)
    except UserError as error:
        if not args.dry_run:
            raise
        problems = problems_of(error)
    how = serving.Serving(arguments, device, version)

    def compute(checked: Any) -> Any:
        from lm_eval_edit.sweep import vllm_engine

        return vllm_engine.run_sweep(checked, how)

    return Choice(VLLM, compute, lambda checked: serving.problems(checked, how), routes.route_lines, problems)


def _vllm_on_ray(args: argparse.Namespace, resources: Any) -> Choice:
    from lm_eval_edit.sweep import ray_engine, routes, serving

    arguments = _engine_args(args)
    problems: list[str] = []
    for check in (
        lambda: ray_engine.check_resources(resources),
        lambda: serving.check_arguments(arguments),
        lambda: serving.check_for_actors(arguments, resources.gpus),
    ):
        try:
            check()
        except UserError as error:
            problems += problems_of(error)
    if problems and not args.dry_run:
        raise ConfigurationError(problems)
    how = serving.Serving(arguments)
    gpus, on_gpu = args.gpus_per_task, None if args.device is None else args.device == "cuda"
    on_gpu = on_gpu if gpus is None else gpus > 0

    def compute(checked: Any) -> Any:
        from lm_eval_edit.sweep import ray_serving

        return ray_serving.run_sweep(checked, resources, how)

    return Choice(
        VLLM,
        compute,
        lambda checked: serving.problems(checked, how),
        lambda checked: [*serving.actor_lines(arguments, on_gpu), *routes.route_lines(checked, on_gpu)],
        problems,
    )


def _engine_args(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's arguments, those with flags of their own among them.

    Raises:
        ConfigurationError: one that is given twice, or no name=value.
    """
    from lm_eval_edit.harness.command import parse_assignments

    arguments: dict[str, Any] = {}
    problems = []
    for word in args.engine_args or ():
        try:
            arguments |= parse_assignments(word)
        except ValueError as error:
            problems.append(f"--engine_args {word}: {error}; want name=value,name=value,...")
    for flag in ("tensor_parallel_size", "data_parallel_size"):
        if (value := getattr(args, flag)) is not None:
            if arguments.get(flag, value) != value:
                problems.append(f"--{flag} {value} and {flag}={arguments[flag]} in --engine_args; give one of them")
            arguments[flag] = value
    if problems:
        raise ConfigurationError(problems)
    return arguments
