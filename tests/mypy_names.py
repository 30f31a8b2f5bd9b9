"""Names that a type checker has to refuse or to know: in strict mode mypy reports an ignore that is not needed."""

import fastsparse as fs


def wrong_names_are_seen() -> None:
    """Never called."""
    fs.compres  # type: ignore[attr-defined]  # noqa: B018
    fs.checkpoint.opne  # type: ignore[attr-defined]  # noqa: B018
    fs.compress, fs.checkpoint.open, fs.torch, fs.__version__  # noqa: B018
