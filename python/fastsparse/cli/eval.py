"""`fastsparse eval`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fastsparse._table import finite
from fastsparse.cli._options import Json, Model

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="A text, or .safetensors with input_ids.")],
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Pieces of the text.")] = 8,
    length: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of each piece.")] = 512,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of a language model on a text.

    Take a text that was not used for calibration. One block of the model is in memory at a time.
    """
    from fastsparse.torch import _folder, _language  # with torch, which the other commands do not need

    found = _folder.evaluate_folder(model, _language.read_tokens(data, model, samples, length))
    if as_json:
        print(json.dumps({"perplexity": finite(found), "tokens": samples * length}))
    else:
        print(f"perplexity {found:.3f} over {samples} pieces of {length} tokens")
