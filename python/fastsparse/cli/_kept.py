"""What a command says of the work that a run which ended early leaves for the next one."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastsparse.checkpoint._stages import folder_beside

__all__ = ["blocks_kept"]


@contextmanager
def blocks_kept(target: Path) -> Iterator[None]:
    """Where what is done within fails or is interrupted, says where its finished blocks are."""
    try:
        yield
    except BaseException:
        folder = folder_beside(target)
        if folder.is_dir():
            said = f"finished blocks are kept in {folder}; the same command goes on after them"
            print(f"fastsparse: {said}", file=sys.stderr)
        raise
