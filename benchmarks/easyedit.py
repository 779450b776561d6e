"""EasyEdit as the other side: its own code from a clone, timed without what the adapter does around it."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval_edit import Fact
from lm_eval_edit.editors.base import EditContext, EditResult, find_editor

#: What EasyEdit's import asks for and its methods on text never call (docs/easyeditor.md).
NEVER_CALLED = (
    "timm", "torchvision", "cv2", "av", "fairscale", "qwen_vl_utils", "openai", "zhipuai", "sentence_transformers",
)  # fmt: skip


class _Empty(types.ModuleType):
    """A module that has a class of every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]):
        self._names = set(names)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        named = fullname.partition(".")[0] in self._names
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if named else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


class EasyEdit:
    """One method of a clone.

    Args:
        clone: Where it lies.
        method: As EasyEdit calls it.
        options: Its hyper-parameters.
        clock: Seconds.
    """

    def __init__(self, clone: str, method: str, options: Mapping[str, Any], clock: Callable[[], float]):
        # After transformers has looked which of them there are: it must not take an empty one for the package.
        lacking = [name for name in NEVER_CALLED if importlib.util.find_spec(name) is None]
        if lacking and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
            sys.meta_path.append(_Finder(lacking))
        adapter = find_editor(f"easyeditor:{method}")
        self._editor = adapter(adapter.Options(clone, dict(options)))
        apply, self.seconds = self._editor._apply, 0.0

        @functools.wraps(apply)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            result = apply(*args, **kwargs)
            self.seconds += clock() - started
            return result

        self._editor._apply = timed

    def compute(self, context: EditContext, facts: Sequence[Fact]) -> EditResult:
        """One operation; `seconds` grows by what EasyEdit itself took."""
        return self._editor.compute(context, facts)
