"""What a sweep calls of Ray, in this process and in turn, with two nodes of no machine: for what goes wrong on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RayHere:
    """A Ray of one process.

    Args:
        lose: (node, method) -> whether an actor of that node is lost instead of answering.
        again: Whether a task's worker is lost as soon as the task is done, so that it is done once more.
        gpus: Of each node.

    Attributes:
        started: The nodes of the actors, in turn.
        tasks: What each task was given, in turn.
    """

    def __init__(
        self, lose: Callable[[str, str], bool] = lambda node, method: False, again: bool = False, gpus: float = 0.0
    ):
        self.lose, self.again, self.gpus = lose, again, gpus
        self.started, self.tasks = list[str](), list[tuple[Any, ...]]()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, "GPU": 2 * self.gpus}

    def nodes(self) -> list[dict[str, Any]]:
        resources = {"CPU": 1.0, "GPU": self.gpus}
        return [{"NodeID": node * 56, "Alive": True, "Resources": resources} for node in "ab"]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        where = options.get("scheduling_strategy")

        def made(what: Any) -> Any:
            return _Tasks(self, what) if where is None else _Actors(self, what, where.node_id[0])

        return made

    def wait(self, references: list[_Reference], num_returns: int = 1, **more: Any) -> tuple[list, list]:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: _Reference) -> Any:
        return reference.value()

    def kill(self, handle: _Handle) -> None:
        handle.actor = None


class _Reference:
    """Of what is computed when it is asked for."""

    def __init__(self, value: Callable[[], Any]):
        self.value = value


class _Remote:
    def __init__(self, function: Any):
        self.function = function

    def remote(self, *args: Any) -> _Reference:
        return _Reference(lambda: self.function(*args))


class _Tasks:
    def __init__(self, ray: RayHere, function: Any):
        self.ray, self.function = ray, function

    def remote(self, *args: Any) -> _Reference:
        self.ray.tasks.append(args)

        def done() -> Any:
            if self.ray.again:
                self.function(*args)
            return self.function(*args)

        return _Reference(done)


class _Actors:
    def __init__(self, ray: RayHere, cls: Any, node: str):
        self.ray, self.cls, self.node = ray, cls, node

    def remote(self, *args: Any) -> _Handle:
        self.ray.started.append(self.node)
        return _Handle(self.cls(*args), self.node, self.ray.lose)


class _Handle:
    def __init__(self, actor: Any, node: str, lose: Callable[[str, str], bool]):
        self.actor, self.node, self.lose = actor, node, lose

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if self.lose(self.node, name):
                raise RuntimeError(f"the actor on node {self.node} died")
            return getattr(self.actor, name)(*args)

        return _Remote(call)
