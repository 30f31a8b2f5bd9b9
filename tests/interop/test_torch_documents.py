"""What is shown runs: the examples, the page on PyTorch, the docstrings."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["_linear", "_load", "_model", "_pruning", "_schedule", "_sparsify", "_tensors"]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"fastsparse.torch.{name}")
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_the_page():
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "torch.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, "docs/torch.md", "exec"), names)


def test_training(capsys):
    runpy.run_path(str(ROOT / "examples" / "torch_train.py"))["main"](["--steps", "120", "--sparsity", "0.8"])
    said = capsys.readouterr().out
    first, last, guess = (float(number) for number in re.findall(r"\d\.\d{3}", said)[:3])
    assert last < 0.8 * guess < first
    assert "80.0% of the packed weights are zero" in said
    assert float(said.rsplit(maxsplit=1)[1]) < 1e-5


def test_decoding(capsys, tmp_path):
    main = runpy.run_path(str(ROOT / "examples" / "torch_decode.py"))["main"]
    main(["--new", "2"])
    assert "28 layers packed, 50.0% of their weights are zero" in capsys.readouterr().out
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    vocabulary = {"<unk>": 0, "the": 1, "quick": 2, "fox": 3}
    save_tokenizer(vocabulary, tmp_path)
    main([str(tmp_path), "--new", "2", "--prompt", "the quick fox"])
    assert "4 layers packed" in capsys.readouterr().out  # GPT-2 has layers of its own kind


def save_tokenizer(vocabulary: dict[str, int], folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


@pytest.mark.filterwarnings("ignore:layer .* tokens are few:RuntimeWarning")
def test_a_language_model_from_loading_to_text(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["language_model.py", "--samples", "4", "--length", "64"])
    runpy.run_path(str(ROOT / "examples" / "language_model.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "stand-in: a small model of random weights" in said
    assert "14 layers pruned, 50.0% of their weights are zero" in said
    assert "14 layers packed" in said
    assert "tokens/s" in said
