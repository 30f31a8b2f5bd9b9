"""The exceptions of fastsparse."""


class FastSparseError(ValueError):
    """Root of all errors that fastsparse raises about its arguments."""


class FormatError(FastSparseError):
    """Packed parts, masks or files that contradict themselves."""
