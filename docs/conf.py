"""The site: every page of this folder, and the reference from the docstrings. `make docs` builds it."""

import io
import re
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

from sphinx.ext.autodoc.mock import _MockObject

from fastsparse.cli import main
from fastsparse.cli._examples import EXAMPLES

# What stands for torch where there is none takes part in annotations too: `Tensor | None`.
_MockObject.__or__ = _MockObject.__ror__ = lambda mock, other: mock  # type: ignore[attr-defined]

project = "fastsparse"
author = copyright = "the fastsparse authors"
_cargo = tomllib.loads((Path(__file__).parents[1] / "Cargo.toml").read_text())
version = release = _cargo["workspace"]["package"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build", "reference/_commands.md"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"fastsparse {version}"
html_show_sourcelink = False
html_copy_source = False
highlight_language = "python3"
pygments_style = "friendly"

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3

# A name in single backticks is code, as on the pages.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the parameters are described with their types
autodoc_mock_imports = ["torch", "transformers"]
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def _write_commands(app: object) -> None:
    """Writes down what the help of each command prints, for the page about the command line."""
    lines = []
    for command in EXAMPLES:
        shown = io.StringIO()
        with redirect_stdout(shown):
            main([command, "-h"])
        lines.append(f"## fastsparse {command}\n\n```text\n{shown.getvalue().strip()}\n```\n")
    Path(__file__).with_name("reference").joinpath("_commands.md").write_text("\n".join(lines), encoding="utf-8")


def _link_out(app: object, name: str, source: list[str]) -> None:
    """Links to files of the repository that are no pages become code: the site does not hold them."""
    source[0] = re.sub(r"\[`?([^\]`]+)`?\]\(\.\./[^)]*\)", r"`\1`", source[0])


def _escape(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """In docstrings a bar is a bar: |w| is a magnitude, no substitution."""
    lines[:] = [re.sub(r"(?<![`\w])\|(\w+)\|", r"\\|\1\\|", line) for line in lines]


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _write_commands)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", _escape)  # type: ignore[attr-defined]
    app.connect("source-read", _link_out)  # type: ignore[attr-defined]
