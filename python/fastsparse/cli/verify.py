"""`fastsparse verify`."""

from pathlib import Path
from typing import Annotated

import typer

from fastsparse import checkpoint
from fastsparse._errors import FormatError
from fastsparse.cli._options import Json, Packed, TrustShards
from fastsparse.cli._progress import progress_of
from fastsparse.cli._show import print_json

__all__ = ["verify"]


def verify(
    path: Packed,
    against: Annotated[
        Path | None, typer.Option(metavar="SRC", help="The dense checkpoint that it was made from.")
    ] = None,
    trust_shards: TrustShards = False,
    as_json: Json = False,
) -> None:
    """Check every tensor of a checkpoint.

    With --against, that nothing is lost that was not to be pruned either.

    With --json, "ok" is the verdict; where it is false, "problems" says why.
    """
    try:
        with progress_of(as_json) as progress:
            report = checkpoint.verify(path, against, progress=progress, trust_shards=trust_shards)
    except FormatError as error:
        if as_json:
            problems = error.problems if isinstance(error, checkpoint.VerifyError) else [str(error)]
            print_json({"ok": False, "problems": problems})
        raise
    if as_json:
        print_json({"ok": True, **report.to_dict()})
        return
    print(report)
    compared = "" if against is None else ", and is what its recipe makes of the source"
    if against is not None and report.calibrated:
        compared += (
            f", but for {report.calibrated} calibrated tensors, of which names, shapes and patterns were compared"
        )
    print(f"ok: every part is right{compared}")
