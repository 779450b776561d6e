"""What a sweep calls of Ray, in this process and in turn, with two nodes of no machine: for what goes wrong on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RayHere:
    """A Ray of one process.

    Args:
        lose: (node, method) -> whether an actor of that node is lost instead of answering.
    """

    def __init__(self, lose: Callable[[str, str], bool] = lambda node, method: False):
        self.lose, self.started = lose, list[str]()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node * 56, "Alive": True, "Resources": {"CPU": 1.0}} for node in "ab"]

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        where = options.get("scheduling_strategy")

        def made(what: Any) -> Any:
            return _Remote(what) if where is None else _Actors(self, what, where.node_id[0])

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
