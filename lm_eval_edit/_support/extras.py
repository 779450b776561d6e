"""Files of ours that belong to a checkpoint and are no weights of it: second moments, hypernetworks.

They lie in a sub-folder of the checkpoint's, for vLLM takes every `*.safetensors` of the folder itself for weights, and
fails. Release 0.1 kept them beside the weights; both places are read.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "editing"


def beside(checkpoint: Path, name: str) -> Path:
    """Where a file of this name lies that belongs to a checkpoint, or would lie if it were there.

    Args:
        checkpoint: The checkpoint's folder.
        name: The file's name.
    """
    old = checkpoint / name
    return old if old.is_file() else checkpoint / FOLDER / name


def found(path: Path) -> Path:
    """The file that a path means: itself, or, where there is none, the one that has moved to the sub-folder since."""
    moved = path.parent / FOLDER / path.name
    return moved if not path.exists() and moved.is_file() else path
