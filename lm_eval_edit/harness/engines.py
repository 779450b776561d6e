"""Which engine gave the figures of a results file, and in which dtype, as far as the file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lm_eval_edit.models.dtypes import dtype_name

TRANSFORMERS, VLLM = "transformers", "vllm"


@dataclass(frozen=True)
class Engine:
    """What ran a model.

    Attributes:
        name: transformers, vllm.
        version: Of that; None where it is not said.
        dtype: What the weights were computed in; None where it is not said.
    """

    name: str
    version: str | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        named = f"{self.name} {self.version}" if self.version else self.name
        return f"{named} ({self.dtype or 'dtype not said'})"

    def record(self) -> dict[str, Any]:
        """As JSON-able values."""
        return asdict(self)

    def differs(self, other: Engine) -> bool:
        """Whether figures of the two differ for reasons that are no edit's; what is not said may be the same."""
        dtypes = {self.dtype, other.dtype} - {None}
        return self.name != other.name or len(dtypes) > 1


def engine_of(results: Mapping[str, Any], task: str | None = None) -> Engine | None:
    """The engine of a results file, of a stock run of the harness too; None where nobody can tell.

    Args:
        task: One whose answers are meant: a few of a served cell are those of the model that was edited.
    """
    config = results.get("config") or {}
    told = config.get("engine")
    if isinstance(told, Mapping) and told.get("name"):
        if task is not None and task in (told.get("in_process") or ()):
            return Engine(TRANSFORMERS, results.get("transformers_version"), told.get("dtype"))
        return Engine(str(told["name"]), told.get("version"), told.get("dtype"))
    if config.get("model_dtype"):  # the harness asks it of models of transformers alone
        return Engine(TRANSFORMERS, results.get("transformers_version"), dtype_name(config["model_dtype"]))
    if config.get("model") == VLLM:
        given = config.get("model_args")
        words = dict(word.partition("=")[::2] for word in given.split(",")) if isinstance(given, str) else given or {}
        said = words.get("dtype")
        return Engine(VLLM, None, None if said in (None, "auto") else str(said))
    return None
