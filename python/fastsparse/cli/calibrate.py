"""`fastsparse calibrate`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fastsparse.cli._options import Clip, Json, Model, Overwrite
from fastsparse.cli._progress import progress_of

__all__ = ["calibrate"]


def calibrate(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="A text, or .safetensors with input_ids.")],
    grams: Annotated[bool, typer.Option("--grams", help="Store Gram matrices too, inputs × inputs each.")] = False,
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Pieces of the text.")] = 64,
    length: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of each piece.")] = 512,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Draw the pieces from all of the text; by default it is its beginning."),
    ] = None,
    clip: Clip = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Store what goes into the layers of a language model.

    Later runs of `prune` and `sweep` then need no text and no forward pass. One block of the model is in memory at a
    time. A run that was ended goes on after the last finished block.
    """
    from fastsparse.torch import _folder, _language  # with torch, which the other commands do not need

    batches = _language.read_tokens(data, model, samples, length, seed)
    with progress_of(as_json) as progress:
        layers = _folder.calibrate_folder(
            model, out, batches, grams=grams, clip=clip, overwrite=overwrite, progress=progress
        )
    if as_json:
        print(json.dumps({"tokens": samples * length, "layers": layers}, indent=2))
    else:
        print(f"{len(layers)} layers, {samples * length} tokens: {out}")
