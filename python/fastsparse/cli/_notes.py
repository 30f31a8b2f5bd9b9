"""What was noted on an error, such as where finished work is kept."""

__all__ = ["notes_of"]


def notes_of(error: BaseException | None) -> list[str]:
    """The notes of an error and of those that it came from: libraries raise their own in the place of an interrupt."""
    notes: list[str] = []
    while error is not None:
        notes += getattr(error, "__notes__", ())
        error = error.__cause__ or error.__context__
    return notes
