"""Where facts come from: the package itself, the field's named data sets on the hub or in a folder, and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lm_eval_edit import demo
from lm_eval_edit.errors import UserError
from lm_eval_edit.facts.fact import Facts, read_facts
from lm_eval_edit.facts.files import read_fact_records


@dataclass(frozen=True)
class HubFacts:
    """Where a named data set lies: on the hub, and under which names a data folder may hold it."""

    repository: str
    file: str | None  # a JSON file of the repository; None when the set loads by its configuration
    local: tuple[str, ...] = field(default=())


#: The named edit data sets (PROTOCOL: the paper's ZsRE, CounterFact). The hub ids could not be tried without network.
HUB = {
    "zsre": HubFacts(
        "wangzn2001/Model_Editing_Hurt",
        "training-data/zsre_mend_eval.json",
        ("edited-data/zsre.json", "zsre.jsonl", "zsre.json", "zsre_mend_eval.json"),
    ),
    "counterfact": HubFacts("azhx/counterfact", None, ("counterfact.jsonl", "counterfact.json")),
}


def _from_hub(name: str) -> Iterator[tuple[int, Any]]:
    import datasets

    hub = HUB[name]
    try:
        if hub.file:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(hub.repository, hub.file, repo_type="dataset"))
            yield from read_fact_records(path)
        else:
            split = datasets.load_dataset(hub.repository, split="train")
            yield from enumerate(split, start=1)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises dozens of types; all mean the same to the user
        raise UserError(
            f"edit_dataset={name} could not be fetched from the hub ({hub.repository}): {type(error).__name__}. "
            f"Without network, give the file itself as edit_dataset=/path/to/{hub.local[-1]}, or the folder that holds "
            f"it as data_dir=..."
        ) from error


@cache
def _of_hub(name: str) -> Facts:
    return read_facts(_from_hub(name), f"hub:{HUB[name].repository}")


def _of_file(path: Path, source: str) -> Facts:
    """The facts of a file, read once as long as it stays as it is: the plan of a run and each of its tasks ask."""
    stat = path.stat()
    return _as_it_is(path, source, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _as_it_is(path: Path, source: str, modified: int, size: int) -> Facts:
    return read_facts(read_fact_records(path), source)


def load_facts(source: str | Path, data_dir: str | Path | None = None) -> Facts:
    """Load the facts of a data set.

    Args:
        source: `demo`, `known_facts`, `zsre`, `counterfact`, or the path of a JSON or JSONL file in any known format.
        data_dir: A folder looked into before the hub, for the named sets.

    Raises:
        UserError: unknown name, missing file, broken JSON (file and line), missing field (file and record).
    """
    name = str(source)
    if name in demo.FACTS:
        return _of_file(demo.FACTS[name], name)
    if name in HUB:
        if data_dir is not None and str(data_dir) != demo.NAME:
            looked = [Path(data_dir) / local for local in HUB[name].local]
            for path in looked:
                if path.is_file():
                    return _of_file(path, str(path))
            raise UserError(
                f"data_dir={data_dir} holds no {name} facts; looked for {', '.join(str(p) for p in looked)}. "
                f"Give the file itself as edit_dataset=FILE"
            )
        return _of_hub(name)
    path = Path(name).expanduser()
    if path.is_dir():
        lies = ", ".join(sorted(each.name for each in path.iterdir() if each.suffix in (".json", ".jsonl"))[:5])
        such = f", such as one of those in it: {lies}" if lies else ""
        raise UserError(
            f"edit_dataset={name} is a folder; give a file of facts{such}. A folder that holds a named set goes into "
            f"data_dir="
        )
    if not path.is_file():
        named = ", ".join((demo.NAME, *HUB, demo.KNOWN_FACTS))
        raise UserError(
            f"edit_dataset={name}: no such file, and not one of the named sets {named}. "
            f"Give one of these names or the path of a JSON or JSONL file of facts"
        )
    return _of_file(path, str(path))
