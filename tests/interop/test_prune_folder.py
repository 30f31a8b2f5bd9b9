"""Folders of language models on the command line: pruned with a text, packed, and measured."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import checkpoint
from fastsparse.cli import main
from fastsparse.torch import _language

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model", max_shard_size="100KB")
    tokenizer = Tokenizer(models.WordLevel({word: i + 3 for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("a card")
    rng = np.random.default_rng(0)
    for name, count in (("text", 4096), ("test", 1024), ("short", 10)):
        (tmp_path / name).write_text(" ".join(rng.choice(WORDS, count)))
    return tmp_path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_prune_to_eight_bits(folder, capsys):
    options = ("--data", folder / "text", "--pattern", "50%", "--samples", 2, "--length", 64, "--method", "magnitude")
    code, _, err = run(capsys, "prune", folder / "model", folder / "packed", *options, "--refine", 0, "--bits", 8)
    assert code == 0, err
    report = checkpoint.verify(folder / "packed")
    packed = {row.name: row for row in report.tensors if row.reason is None}
    assert len(packed) == 14
    source, stored = checkpoint.open(folder / "model"), checkpoint.open(folder / "packed")
    for name, row in packed.items():
        assert row.bits == 8
        assert stored[name] == fs.compress(source[name], "50%").quantize()
    measure = ("--data", folder / "test", "--samples", 2, "--length", 64, "--json")
    checkpoint.decompress(folder / "packed", folder / "dense")
    found = [json.loads(run(capsys, "eval", folder / name, *measure)[1])["perplexity"] for name in ("packed", "dense")]
    assert found[0] == pytest.approx(found[1], rel=0.01)


@pytest.mark.filterwarnings("ignore:.*tokens are few for:RuntimeWarning")
def test_prune_and_eval(folder, capsys):
    options = ("--data", folder / "text", "--pattern", "50%", "--samples", 16, "--length", 128)
    code, out, err = run(capsys, "prune", folder / "model", folder / "packed", *options)
    assert code == 0, err
    assert "14 layers pruned, 50.0% zeros" in out
    assert (folder / "packed" / "README.md").read_text() == "a card"
    assert (
        json.loads((folder / "packed" / "config.json").read_text())["quantization_config"]["quant_method"]
        == "fastsparse"
    )

    # The same by hand: the model pruned in place, its perplexity by transformers' own loss.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    batches = _language.read_tokens(folder / "text", folder / "model", 16, 128)
    fst.prune_model(model, "50%", batches)
    packed = checkpoint.open(folder / "packed")
    for name, parameter in model.named_parameters():
        stored = packed[name]
        dense = stored.to_dense() if hasattr(stored, "to_dense") else stored
        assert np.array_equal(dense, parameter.detach().numpy()), name
    texts = _language.read_tokens(folder / "test", folder / "model", 4, 128)
    with torch.no_grad():
        expected = np.exp(np.mean([float(model(input_ids=x, labels=x).loss) for x in texts]))
    found = {}
    checkpoint.decompress(folder / "packed", folder / "dense")
    for name in ("packed", "dense"):
        measure = ("--data", folder / "test", "--samples", 4, "--length", 128, "--json")
        code, out, err = run(capsys, "eval", folder / name, *measure)
        assert code == 0, err
        found[name] = json.loads(out)["perplexity"]
    assert found["packed"] == pytest.approx(expected, rel=1e-5)
    assert found["dense"] == pytest.approx(expected, rel=1e-5)

    code, _, err = run(capsys, "prune", folder / "model", folder / "packed", *options)
    assert (code, "--overwrite" in err) == (1, True)


def test_tokens_may_be_stored(folder):
    ids = np.arange(3, 63, dtype=np.int32).reshape(2, 30)
    checkpoint.save({"input_ids": ids}, folder / "ids.safetensors")
    found = _language.read_tokens(folder / "ids.safetensors", folder / "model", 2, 30)
    assert np.array_equal(torch.cat(found).numpy(), ids)


def test_bad_input_is_one_line(folder, capsys):
    options = ("--pattern", "50%", "--data")
    code, _, err = run(capsys, "prune", folder / "model", folder / "x", *options, folder / "short")
    assert code == 1
    assert "short has 10 tokens, fewer than 64 samples of 512" in err
    (folder / "model" / "tokenizer.json").unlink()
    (folder / "model" / "tokenizer_config.json").unlink()
    code, _, err = run(capsys, "eval", folder / "model", "--data", folder / "test")
    assert code == 1
    assert "no tokenizer" in err
    assert len(err.strip().splitlines()) == 1
    code, _, err = run(capsys, "eval", folder, "--data", folder / "ids.safetensors")
    assert code == 1
    assert sorted(path.name for path in folder.iterdir()) == ["model", "short", "test", "text"]
