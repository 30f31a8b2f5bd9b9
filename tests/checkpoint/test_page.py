"""The page about a checkpoint: its markup, what it must not say, its size, and a real browser."""

import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "model.<img src=x onerror=document.title='owned'>\"&.weight"


class Markup(HTMLParser):
    """Checks that every element ends, and collects elements with their attributes."""

    VOID = ("meta", "br", "img", "link", "input", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def model(layers=3, **more):
    rng = np.random.default_rng(0)
    kinds = {"attn.q": (32, 64), "mlp.up": (80, 64), "mlp.down": (64, 80)}
    tensors = {
        f"model.layers.{layer}.{kind}.weight": rng.standard_t(4, shape).astype(np.float32)
        for layer in range(layers)
        for kind, shape in kinds.items()
    }
    return {**tensors, "model.norm.weight": np.ones(64, np.float32), **more}


def page(tmp_path, tensors, **options):
    checkpoint.save(tensors, tmp_path / "model.safetensors", overwrite=True)
    options = {"patterns": ["25%", "50%", "75%", "2:4"], "magnitudes": True, "min_size": 100, **options}
    return checkpoint.sweep(tmp_path / "model.safetensors", **options).to_html()


def test_markup(tmp_path):
    text = page(tmp_path, {**model(), NASTY: fs.prune(np.ones((40, 64), np.float32), "2:4")})
    found = Markup(text)
    assert found.named("img") == []
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in found.named("svg"))
    assert len(found.named("svg")) > 5
    assert all(region["tabindex"] == "0" and region["aria-label"] for region in found.named("div") if "role" in region)
    assert len(found.named("caption")) == len(found.named("table")) == 3
    assert all(head["scope"] in ("col", "row") for head in found.named("th"))
    assert not re.search(r"(?:src|href|url)\s*[=(]|https?://", re.sub(re.escape("&lt;img src=x"), "", text))
    assert {meta.get("name") for meta in found.named("meta")} >= {"viewport", "color-scheme"}
    assert "prefers-color-scheme:dark" in text
    shown = "".join(found.text)
    assert NASTY in shown
    assert "2:4" in shown


def test_a_few_scattered_zeros_are_no_pattern_and_no_picture(tmp_path):
    dense = model(layers=2)
    for w in dense.values():
        w.reshape(-1)[::313] = 0
    shown = "".join(Markup(page(tmp_path, dense)).text)
    assert "Share of zeros by layer" not in shown
    assert "scattered" in shown
    pruned = {name: fs.prune(w, "2:4") for name, w in dense.items()}
    shown = "".join(Markup(page(tmp_path, pruned)).text)
    assert "Share of zeros by layer" in shown


def test_it_does_not_say_that_energy_is_quality(tmp_path):
    shown = "".join(Markup(page(tmp_path, model())).text)
    assert "It does not say whether the model still works" in shown
    assert not re.search(r"accura|quality|safe to|lossless|still works(?!:)", shown, re.IGNORECASE)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"a": np.arange(3)},
        {"a.weight": np.zeros((40, 64), np.float32)},
        {"a.weight": np.full((40, 64), np.nan, np.float32)},
        {"a.weight": np.float32([[np.inf, 1] * 50] * 30)},
        {"0.weight": np.ones((40, 64), np.int8), "1.weight": np.ones((0, 64), np.float32)},
        {"x" * 5000 + ".weight": np.ones((40, 64), np.float32), "\x00\x1b\u202e.weight": np.eye(64, dtype=np.float16)},
    ],
)
def test_every_kind_of_checkpoint_makes_a_page(tmp_path, tensors):
    text = page(tmp_path, tensors)
    Markup(text)
    assert len(text) < 100_000
    assert "\x00" not in text
    assert "\u202e" not in text


def test_alternatives_are_whole_and_what_is_unknown_sorts_first(tmp_path):
    long = "model." + "x" * 300
    tensors = {**model(), "norm.weight": np.ones(5, np.float32), f"{long}.weight": np.ones((40, 64), np.float32)}
    found = Markup(page(tmp_path, tensors, patterns=[f"{share}%" for share in range(2, 100, 4)]))
    labels = [svg["aria-label"] for svg in found.named("svg")]
    assert max(map(len, labels)) > 400
    assert "at 98 % zeros." in next(label for label in labels if "All together" in label)
    assert not any("x" * 100 in label for label in labels)
    assert {cell["data-v"] for cell in found.named("td") if "data-v" in cell} >= {"-1"}
    values = [float(cell["data-v"]) for cell in found.named("td") if "data-v" in cell]
    assert np.isfinite(values).all()
    empty = fs.sweep(np.ones((0, 4), np.float32), "50%")
    assert 'data-v="-1"' in empty._repr_html_()


def test_packed_and_pruned_files(tmp_path):
    checkpoint.save(model(), tmp_path / "dense.safetensors")
    checkpoint.compress(tmp_path / "dense.safetensors", tmp_path / "packed.safetensors", "2:4")
    shown = "".join(Markup(checkpoint.sweep(tmp_path / "packed.safetensors", magnitudes=True).to_html()).text)
    assert "Patterns found" in shown
    assert "Share of zeros by layer" in shown


def test_the_size_is_bounded(tmp_path):
    tensors = {
        f"model.layers.{i // 8}.experts.{i % 8}.up_proj_of_a_long_name_{i % 50}.weight": w
        for i, w in enumerate(np.random.default_rng(0).standard_normal((2100, 8, 16)).astype(np.float32))
    }
    text = page(tmp_path, tensors, patterns=["50%"])
    Markup(text)
    assert len(text.encode()) < 2_000_000
    assert "The 2,000 largest of 2,100 tensors" in text


def test_notebooks_show_parts_of_it(tmp_path):
    checkpoint.save(model(), tmp_path / "dense.safetensors")
    report = checkpoint.compress(tmp_path / "dense.safetensors", tmp_path / "packed.safetensors", "2:4")
    packed = fs.compress(np.random.default_rng(0).standard_normal((100, 200)), "75%/4x1")
    shown = [
        packed,
        packed.quantize(),
        fs.pack(np.zeros((0, 3))),
        fs.pack(np.float32(3)),
        fs.sweep(np.ones((4, 4))),
        report,
        checkpoint.sweep(tmp_path / "dense.safetensors", "50%"),
    ]
    for one in shown:
        text = one._repr_html_()
        Markup(text)
        assert text.startswith('<div class="fs">')
        assert "<script" not in text
        assert len(text) < 200_000


def browse(*arguments):
    """What a real browser prints; its log, with the messages of pages, is the second."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look at pages with")
def test_a_browser_shows_it(tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(tmp_path, {**model(), NASTY: np.eye(64, dtype=np.float32)}), "utf-8")
    picture = tmp_path / "page.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dom, log = browse(profile, "--dump-dom", file.as_uri())
    assert "CONSOLE" not in log
    assert "<title>model.safetensors – fastsparse</title>" in dom
    assert len(re.findall(r'<th [^>]*scope="col"><button type="button">', dom)) == dom.count('scope="col"')
    for width in (1200, 360):
        _, log = browse(profile, f"--window-size={width},1400", f"--screenshot={picture}", file.as_uri())
        assert "CONSOLE" not in log
        size, lines = read_png(picture.read_bytes())
        assert size[0] == width
        assert len(set(lines)) > 100


def read_png(data):
    """The size and the filtered lines of a picture."""
    at, body = 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"IHDR":
            width, height = struct.unpack(">II", data[at + 8 : at + 16])
        elif kind == b"IDAT":
            body += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(body)
    step = len(raw) // height
    return (width, height), [raw[i : i + step] for i in range(0, len(raw), step)]
