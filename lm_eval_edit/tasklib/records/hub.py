"""Records from the Hugging Face hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from lm_eval_edit.errors import UserError
from lm_eval_edit.tasklib.records.layouts import Placed
from lm_eval_edit.tasklib.records.sets import HubSet, RecordSet

logger = logging.getLogger("lm_eval_edit")

_COMMIT = re.compile(r"@([0-9a-f]{40})/")
_NETWORK = re.compile(
    r"offline|couldn't reach|connection|timed? ?out|name resolution|network|not found in the local cache", re.IGNORECASE
)


def load(records: RecordSet) -> tuple[list[Placed], str]:
    """Records of the first data set that loads, and its name `hub:<id>[/<config>]@<revision>`.

    Where the library knows the commit that was read, the name holds it instead of the branch.

    Raises:
        UserError: None loads. The message gives each reason and names `data_dir`.
    """
    candidate, rows, failures = _first(records)
    for failure in failures:
        logger.warning("%s: %s; using %s instead", records.name, failure, candidate.path)
    name = _name(candidate, rows)
    return list(_records(name, candidate, rows)), name


def is_offline() -> bool:
    """Whether the libraries were told not to ask the hub: what they have kept of it is then all there is."""
    import datasets  # slow to import, needed only here

    return bool(datasets.config.HF_HUB_OFFLINE)


def is_here(records: RecordSet) -> bool:
    """Whether `load` finds the records; quick where the hub is set offline."""
    try:
        _first(records)
    except UserError:
        return False
    return True


def _first(records: RecordSet) -> tuple[HubSet, Any, list[str]]:
    """The first data set that loads, its rows, and why those before it did not."""
    failures = []
    for candidate in records.hub:
        try:
            rows = _load(candidate)
        except Exception as error:  # the library raises many kinds, some of its dependencies' own
            offline = _no_network(error)
            reason = "no network (or the hub is set offline)" if offline else f"{type(error).__name__}: {error}"
            failures.append(f"{candidate.path}: {reason}")
            if offline and candidate.passages:
                break
            continue
        missing = [name for name in candidate.columns if name not in rows.column_names]
        if not missing:
            return candidate, rows, failures
        columns = ", ".join(rows.column_names)
        failures.append(f"{candidate.path}: the column '{missing[0]}' is missing (there are: {columns})")
    theirs = "" if records.paper is None else f" or task-data/{records.paper}"
    raise UserError(
        f"task {records.name}: its data could not be loaded from the Hugging Face hub\n"
        + "\n".join(f"  - {failure}" for failure in failures)
        + "\nGive a folder that holds the data instead: data_dir=/path/to/data in --model_args or --metadata, with "
        f"{records.stems[0]}.jsonl{theirs} in it (or data_dir=demo)."
    )


def _load(candidate: HubSet) -> Any:
    import datasets  # slow to import, needed only here

    return datasets.load_dataset(candidate.path, candidate.config, split=candidate.split, revision=candidate.revision)


def _records(name: str, candidate: HubSet, rows: Any) -> Iterator[Placed]:
    wanted = rows.select_columns(list(candidate.columns))
    for i, row in enumerate(wanted):
        yield f"{name}: record {i}", {candidate.rename.get(key, key): value for key, value in row.items()}


def _name(candidate: HubSet, rows: Any) -> str:
    """The commit stands in the addresses of the files that were read."""
    checksums = getattr(getattr(rows, "info", None), "download_checksums", None) or {}
    commit = next((match[1] for url in checksums if (match := _COMMIT.search(str(url)))), candidate.revision)
    config = f"/{candidate.config}" if candidate.config else ""
    return f"hub:{candidate.path}{config}@{commit}"


def _no_network(error: BaseException | None) -> bool:
    """Whether a missing network is behind the error, judged by it and what caused it."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or _NETWORK.search(f"{type(error).__name__}: {error}"):
            return True
        error = error.__cause__ or error.__context__
    return False
