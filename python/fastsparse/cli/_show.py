"""Results on stdout."""

import json
from typing import Any

from fastsparse import checkpoint

__all__ = ["print_json", "show"]


def show(report: checkpoint.Report, as_json: bool) -> None:
    """Prints a report as a table or as JSON."""
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
