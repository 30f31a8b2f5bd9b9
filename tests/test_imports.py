"""Imports point down: no circle of files goes through two folders.

Imports within functions count. Those for type checkers alone do not: the package tells them its submodules.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "python" / "fastsparse"


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


EXTENSION = "fastsparse._core"
FILES = {module(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in FILES or inner == EXTENSION else str(node.module)


GRAPH = {name: {other for other in imported(path) if other in FILES} for name, path in FILES.items()}


def reached(start: str) -> set[str]:
    found, left = set(), [start]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += GRAPH[name]
    return found


def test_no_circle_goes_through_two_folders() -> None:
    assert sum(map(len, GRAPH.values())) > 100  # as many as to show that imports are found
    assert [
        f"{name} imports {other}, which needs it"
        for name, others in GRAPH.items()
        for other in others
        if FILES[name].parent != FILES[other].parent and name in reached(other)
    ] == []
