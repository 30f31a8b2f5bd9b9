"""The site that `make docs` builds: its pages are there, are found by its search, and fit a screen and a phone."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
SITE = Path(os.environ.get("FASTSPARSE_SITE", HOME / "docs" / "_build" / "html"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built: make docs")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture
def browse(tmp_path):
    """Opens an address in a headless browser; returns its document when scripts are done, and what the console says."""

    def load(address, *options):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--allow-file-access-from-files", "--disable-web-security", "--enable-logging=stderr"]
        command += ["--virtual-time-budget=10000", *options, address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return load


def test_every_page_is_there():
    pages = [path.relative_to(HOME / "docs") for path in (HOME / "docs").rglob("*.md") if "_" not in str(path)]
    assert len(pages) > 15
    for page in pages:
        assert (SITE / page.with_suffix(".html")).is_file(), page
    names = (SITE / "reference" / "arrays.html").read_text(encoding="utf-8")
    for name in ("select", "BitmaskArray.to_dense", "BitmaskArray.T", "NM"):
        assert f'id="fastsparse.{name}"' in names
    assert "fastsparse.torch.prune_model" in (SITE / "reference" / "torch.html").read_text(encoding="utf-8")
    assert "Examples:" in (SITE / "reference" / "commands.html").read_text(encoding="utf-8")


@needs_browser
@pytest.mark.parametrize(
    ("words", "page"), [("kept energy", "tutorial.html"), ("marlin", "howto/rescue.html"), ("prepare", "tutorial.html")]
)
def test_the_search_finds_pages(browse, words, page):
    document, console = browse(f"file://{SITE}/search.html?q={words.replace(' ', '+')}", "--dump-dom")
    assert page in re.findall(r'<li class="kind-\w+"><a href="([^"#]+)', document)
    assert console == []


@needs_browser
@pytest.mark.parametrize("page", ["index", "reference/arrays", "reference/commands", "performance", "howto/checkpoint"])
def test_pages_fit_a_phone(browse, tmp_path, page):
    """What is wider, tables and code, scrolls by itself."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="file://{SITE}/{page}.html" width="390" height="800" onload="'
        "document.title = this.contentDocument.documentElement.scrollWidth + ' ' + this.contentDocument.title"
        '"></iframe>'
    )
    document, console = browse(f"file://{frame}", "--dump-dom")
    width, title = re.search(r"<title>(\d+) ([^<]+)</title>", document).groups()
    assert int(width) <= 390
    assert "fastsparse" in title
    assert console == []


@needs_browser
def test_it_can_be_looked_at(browse, tmp_path):
    """A screenshot is more than an empty page: it does not compress to a few bytes a row."""
    shot = tmp_path / "site.png"
    browse(f"file://{SITE}/index.html", "--window-size=1200,1500", f"--screenshot={shot}")
    assert shot.stat().st_size > 60_000
