"""What there is to know about a public data set: where it is on the hub, and what its file in a folder is called."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class HubSet:
    """One data set on the Hugging Face hub.

    Attributes:
        path, config, split, revision: As `datasets.load_dataset` takes them.
        columns: Columns that must be there after loading.
        rename: Column on the hub -> field of the record schema of the family's `documents`.
        passages: The set carries the passages of open-domain QA. Another set in its place changes the *prompt*, so a
            missing network must not lead to it silently.
    """

    path: str
    split: str
    columns: tuple[str, ...]
    config: str | None = None
    revision: str = "main"
    rename: dict[str, str] = field(default_factory=dict)
    passages: bool = False


@dataclass(frozen=True)
class RecordSet:
    """The records of a task, wherever they are.

    Attributes:
        name: What messages call it.
        stems: Names of its hub-schema file, without ending, in the order in which they are tried.
        split: The split that is evaluated.
        hub: Candidates on the hub, the best first.
        paper: Its file (or folder of files) inside the `task-data/` of Gu et al.; None where it is not there.
        vague: Further stems, tried last: the split they hold cannot be told from them.
    """

    name: str
    stems: tuple[str, ...]
    split: str
    hub: tuple[HubSet, ...]
    paper: str | None = None
    vague: tuple[str, ...] = ()
