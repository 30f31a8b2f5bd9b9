"""Folders of language models on the command line: pruned with a text, a block in memory at a time, and measured."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, models, pre_tokenizers

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import calibration, checkpoint
from fastsparse.checkpoint._reader import Reader
from fastsparse.cli import main
from fastsparse.torch import _blocks, _folder, _language

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens are few for:RuntimeWarning")
WORDS = [f"w{i}" for i in range(60)]
SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OPT = {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 128}
CONFIGS = {
    "Llama": lambda: T.LlamaConfig(**SIZES, intermediate_size=128),
    "GPT-2": lambda: T.GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "OPT": lambda: T.OPTConfig(**SIZES, **OPT),
    "Mixtral": lambda: T.MixtralConfig(
        **SIZES, intermediate_size=64, num_key_value_heads=4, num_local_experts=4, output_router_logits=True
    ),
    # Projections before and after the blocks, which are pruned too.
    "OPT projected": lambda: T.OPTConfig(**{**SIZES, **OPT, "word_embed_proj_dim": 48, "do_layer_norm_before": False}),
}


def make(place, name, **options):
    torch.manual_seed(0)
    T.AutoModelForCausalLM.from_config(CONFIGS[name]()).save_pretrained(place / "model", **options)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["a", "b", "c", *WORDS])}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a").save_pretrained(place / "model")
    (place / "model" / "README.md").write_text("a card")
    rng = np.random.default_rng(0)
    for file, count in (("text", 4096), ("test", 1024), ("short", 10)):
        (place / file).write_text(" ".join(rng.choice(WORDS, count)))
    return place


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path, "Llama", max_shard_size="100KB")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing is fetched: no socket is opened to anywhere."""

    def refuse(*_):
        raise AssertionError("a connection to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def prune(capsys, folder, target, *options):
    return run(capsys, "prune", folder / "model", target, "--data", folder / "text", "--length", 128, *options)


def dense(path):
    """The tensors of a folder, unpacked."""
    stored = checkpoint.open(path)
    return {name: stored[name].to_dense() if hasattr(stored[name], "to_dense") else stored[name] for name in stored}


def content(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.parametrize(
    ("name", "pattern", "options"),
    [
        ("Llama", "50%", {"max_shard_size": "100KB"}),
        ("GPT-2", "2:4", {}),
        ("OPT", "50%/row", {"max_shard_size": "100KB"}),
        ("OPT projected", "75%/1x4", {}),
    ],
)
def test_the_folder_is_what_pruning_in_memory_gives(tmp_path, capsys, monkeypatch, name, pattern, options):
    folder = make(tmp_path, name, **options)
    loaded = watch_memory(monkeypatch)
    clip = 1.5 if name == "OPT" else None
    clipped = () if clip is None else ("--clip", clip)
    code, out, err = prune(capsys, folder, folder / "packed", "--pattern", pattern, "--samples", 16, *clipped)
    assert code == 0, err
    assert loaded == {1}, "blocks in memory at a time"
    assert sorted(path.name for path in folder.iterdir()) == ["model", "packed", "short", "test", "text"]
    assert (folder / "packed" / "README.md").read_text() == "a card"
    config = json.loads((folder / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "fastsparse"
    checkpoint.verify(folder / "packed")

    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    batches = _language.read_tokens(folder / "text", folder / "model", 16, 128)
    report = fst.prune_model(model, pattern, batches, clip=clip)
    assert f"{len(report.pruned)} layers pruned" in out
    found = dense(folder / "packed")
    for key, parameter in model.state_dict().items():
        assert key not in found or np.array_equal(found[key], parameter.numpy()), key
    model.save_pretrained(folder / "pruned")
    checkpoint.compress(folder / "pruned", folder / "expected", "nonzero")
    expected = {row.name: row.bytes_after for row in checkpoint.inspect(folder / "expected").tensors}
    assert {row.name: row.bytes_after for row in checkpoint.inspect(folder / "packed").tensors} == expected

    texts = _language.read_tokens(folder / "test", folder / "model", 4, 128)
    with torch.no_grad():
        perplexity = np.exp(np.mean([float(model(input_ids=x, labels=x).loss) for x in texts]))
    checkpoint.decompress(folder / "packed", folder / "dense")
    for kind in ("packed", "dense"):
        measure = ("--data", folder / "test", "--samples", 4, "--length", 128, "--json")
        code, out, err = run(capsys, "eval", folder / kind, *measure)
        assert code == 0, err
        assert json.loads(out)["perplexity"] == pytest.approx(perplexity, rel=1e-5)


def test_a_folder_may_hold_the_body_alone(tmp_path, capsys):
    folder = make(tmp_path, "GPT-2")
    path = folder / "model" / "model.safetensors"
    body = {name.removeprefix("transformer."): w for name, w in dense(folder / "model").items()}
    assert "h.0.mlp.c_fc.weight" in body
    checkpoint.save(
        {**body, "h.0.attn.bias": np.ones((1, 1, 128, 128), np.float32)},
        path.with_name("new"),
        metadata={"format": "pt"},
    )
    path.with_name("new").rename(path)
    code, _, err = prune(capsys, folder, folder / "packed", "--pattern", "50%", "--samples", 4)
    assert code == 0, err
    rows = {row.name: row for row in checkpoint.inspect(folder / "packed").tensors}
    assert rows["h.1.mlp.c_fc.weight"].sparsity == 0.5
    assert rows["h.0.attn.bias"].sparsity is None
    checkpoint.decompress(folder / "packed", folder / "dense")
    measure = ("--data", folder / "test", "--samples", 2, "--length", 64, "--json")
    found = [json.loads(run(capsys, "eval", folder / name, *measure)[1])["perplexity"] for name in ("packed", "dense")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_prune_to_eight_bits(folder, capsys):
    options = ("--pattern", "50%", "--samples", 2, "--method", "magnitude", "--refine", 0, "--bits", 8)
    code, _, err = prune(capsys, folder, folder / "packed", *options)
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


def watch_memory(monkeypatch):
    """How many blocks have weights in memory, whenever one runs."""
    found, run_block = set(), _blocks.Call.run
    stacks = []

    def watched(self, block, hidden):
        if not stacks:
            stacks.append(_blocks.stacks_of(models_made[-1])[0])
        there = [any(not w.is_meta for w in one.parameters()) for one in stacks[0].blocks.values()]
        found.add(sum(there))
        return run_block(self, block, hidden)

    models_made, load = [], _folder.load_weights

    def noted(source):
        weights, dtype = load(source)
        models_made.append(weights.model)
        return weights, dtype

    monkeypatch.setattr(_folder, "load_weights", noted)
    monkeypatch.setattr(_blocks.Call, "run", watched)
    return found


@pytest.mark.parametrize("options", [(), ("--allocation", "owl"), ("--method", "wanda", "--allocation", "loss")])
def test_ratios_are_those_in_memory(folder, capsys, options):
    code, _, err = prune(capsys, folder, folder / "packed", "--pattern", "60%", "--samples", 4, *options)
    assert code == 0, err
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    batches = _language.read_tokens(folder / "text", folder / "model", 4, 128)
    named = dict(zip([option.strip("-") for option in options[::2]], options[1::2], strict=True))
    fst.prune_model(model, "60%", batches, **named)
    found = dense(folder / "packed")
    assert all(np.array_equal(found[key], p.detach().numpy()) for key, p in model.named_parameters())


KILLED = """
import os, signal, sys
from fastsparse.checkpoint import _stages
from fastsparse.cli import main
add, count = _stages.Stages.add, int(sys.argv[1])
def dying(self, *arguments):
    global count
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *arguments)
    count -= 1
_stages.Stages.add = dying
main(sys.argv[2:])
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_run_goes_on(tmp_path, capsys, monkeypatch):
    folder = make(tmp_path, "OPT projected")
    options = ("--pattern", "50%", "--allocation", "owl", "--samples", 4)
    assert prune(capsys, folder, folder / "whole", *options)[0] == 0
    arguments = [folder / "model", folder / "packed", "--data", folder / "text", "--length", 128, *options]
    # Four stages of the allocation, and four of pruning: killed while the second block of these is kept.
    killed = [sys.executable, "-W", "ignore", "-c", KILLED, "6", "prune", *map(str, arguments)]
    assert subprocess.run(killed, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert (folder / ".packed.stages").is_dir()
    assert not (folder / "packed").exists()
    seen, advance = [], _blocks.Call.run
    monkeypatch.setattr(_blocks.Call, "run", lambda self, *args: seen.append(1) or advance(self, *args))
    code, out, err = prune(capsys, folder, folder / "packed", *options)
    assert (code, len(seen)) == (0, 2 * 4), err
    assert "6 blocks and shards taken over" in out
    assert content(folder / "packed") == content(folder / "whole")
    assert not (folder / ".packed.stages").exists()


def change(folder, name, change):
    """Changes a tensor in the shard that has it."""
    index = folder / "model.safetensors.index.json"
    shard = json.loads(index.read_text())["weight_map"][name] if index.exists() else "model.safetensors"
    tensors = {key: np.array(array) for key, array in checkpoint.open(folder / shard).items()}
    tensors[name] = change(tensors[name])
    checkpoint.save(tensors, folder / shard, metadata={"format": "pt"}, overwrite=True)


def test_blocks_do_not_hold_for_other_weights_before_them(folder, capsys, monkeypatch):
    first = ("--pattern", "50%", "--samples", 4)
    with monkeypatch.context() as patch:
        stop(patch, fs.FastSparseError("enough"))
        assert prune(capsys, folder, folder / "packed", *first)[0] == 1
    change(folder / "model", "model.embed_tokens.weight", lambda w: w[::-1])
    code, _, err = prune(capsys, folder, folder / "packed", *first)
    assert (code, "finished blocks made with other settings or from other weights" in err) == (1, True)
    assert prune(capsys, folder, folder / "packed", *first, "--overwrite")[0] == 0
    assert prune(capsys, folder, folder / "fresh", *first)[0] == 0
    assert content(folder / "packed") == content(folder / "fresh")


KEPT = "finished blocks are kept in {}; the same command goes on after them"


def stop(patch, error):
    """Has runs end by this error once all blocks are pruned."""
    prune_model = _folder.prune_at

    def failing(*arguments):
        prune_model(*arguments)
        raise error

    patch.setattr(_folder, "prune_at", failing)


def test_what_another_run_finished_is_removed_on_demand_only(folder, capsys, monkeypatch):
    stages, first = folder / ".packed.stages", ("--pattern", "50%", "--samples", 4)
    with monkeypatch.context() as patch:
        stop(patch, fs.FastSparseError("enough"))
        code, _, err = prune(capsys, folder, folder / "packed", *first)
    lines = ["fastsparse: enough", f"fastsparse: {KEPT.format(stages)}"]
    assert (code, err.splitlines()[-2:], err.count("kept in")) == (1, lines, 1)
    kept = content(stages)
    others = ("--pattern", "2:4", "--samples", 4), ("--pattern", "50%", "--samples", 3)
    shard = next((folder / "model").glob("*2-of-*.safetensors"))
    weights = shard.read_bytes()
    for options in (*others, first):
        if options == first:
            shard.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        code, _, err = prune(capsys, folder, folder / "packed", *options)
        assert code == 1
        assert err.splitlines()[-1].startswith(f"fastsparse: {stages}: it has finished blocks made with other settings")
        assert "--overwrite replaces it" in err
        assert "kept in" not in err
        assert content(stages) == kept
    shard.write_bytes(weights)
    assert "2 blocks and shards taken over" in prune(capsys, folder, folder / "packed", *first)[1]
    for options in others:
        code, out, _ = prune(capsys, folder, folder / "packed", *options, "--overwrite")
        assert (code, "taken over" in out) == (0, False)
        with monkeypatch.context() as patch:
            stop(patch, fs.FastSparseError("enough"))
            assert prune(capsys, folder, folder / "packed", *options, "--overwrite")[0] == 1
    code, out, _ = prune(capsys, folder, folder / "packed", *options, "--overwrite")
    assert (code, "2 blocks and shards taken over" in out) == (0, True)


def test_an_interrupt_says_what_is_kept(folder, capsys, monkeypatch):
    options = ("--pattern", "50%", "--samples", 2, "--method", "magnitude", "--refine", 0)
    with monkeypatch.context() as patch:
        stop(patch, KeyboardInterrupt())
        code, _, err = prune(capsys, folder, folder / "packed", *options)
    said = [line for line in err.splitlines() if line.startswith("fastsparse: ") and "warning" not in line]
    assert (code, said) == (130, [f"fastsparse: interrupted; {KEPT.format(folder / '.packed.stages')}"])
    with monkeypatch.context() as patch:
        patch.setattr(_folder, "prune_at", lambda *_: signal.raise_signal(signal.SIGINT))
        code, _, err = prune(capsys, folder, folder / "other", *options)
    assert (code, err.splitlines()[-1]) == (130, "fastsparse: interrupted; what was begun is removed")
    assert not (folder / ".other.stages").exists()


@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("50%", ("--method", "wanda", "--refine", 0)),
        ("2:4", ("--method", "sparsegpt")),
        ("50%", ("--method", "sparsegpt", "--bits", 8)),
        ("top31/32", ("--method", "sparsegpt")),  # packed it would be larger
    ],
)
def test_calibrated_folders_are_verified_against_their_source(folder, capsys, pattern, options):
    packed = folder / "packed"
    assert prune(capsys, folder, packed, "--pattern", pattern, "--samples", 4, *options)[0] == 0
    code, out, err = run(capsys, "verify", packed)
    assert (code, ", 14 calibrated, " in out, out.splitlines()[-1]) == (0, True, "ok: every part is right"), err
    code, out, err = run(capsys, "verify", packed, "--against", folder / "model")
    assert (code, "but for 14 calibrated tensors, of which names, shapes and patterns" in out) == (0, True), err
    rows = json.loads(run(capsys, "verify", packed, "--against", folder / "model", "--json")[1])["tensors"]
    assert all((row["calibrated"], row["kept_energy"]) == (row["sparsity"] is not None, None) for row in rows)
    if pattern == "2:4":
        assert run(capsys, "convert", packed, folder / "converted", "--to", "sparse-24")[0] == 0
        assert checkpoint.verify(folder / "converted", folder / "model").calibrated == 14
    checked = checkpoint.inspect(packed).tensors
    changed = next(row.name for row in checked if row.calibrated)
    copied = next(row.name for row in checked if not row.calibrated)
    key = f"{changed.removesuffix('.weight')}.bitmask" if pattern != "top31/32" else changed
    for name, verified, why in (
        (key, (), "density|disagree|mask|elements|pattern"),
        (copied, ("--against", folder / "model"), "differs from the source"),
    ):
        shard = packed / json.loads((packed / "model.safetensors.index.json").read_text())["weight_map"][name]
        before = shard.read_bytes()
        header = 8 + int.from_bytes(before[:8], "little")
        start, end = json.loads(before[8:header])[name]["data_offsets"]
        shard.write_bytes(before[: header + start] + bytes(end - start) + before[header + end :])
        code, _, err = run(capsys, "verify", packed, *verified)
        assert (code, re.search(why, err) is not None) == (1, True), err
        shard.write_bytes(before)


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_two_runs_into_one_target(folder, capsys, monkeypatch):
    prune_layer, second = _folder.prune_at, []

    def nested(*arguments):
        if not second:
            second.append(prune(capsys, folder, folder / "packed", "--pattern", "50%", "--samples", 4))
        return prune_layer(*arguments)

    monkeypatch.setattr(_folder, "prune_at", nested)
    assert prune(capsys, folder, folder / "packed", "--pattern", "50%", "--samples", 4)[0] == 0
    assert (second[0][0], "another run is writing it" in second[0][2]) == (1, True)


def test_half_precision_is_computed_in_float32(tmp_path, capsys):
    folder = make(tmp_path, "Llama")
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").bfloat16()
    model.save_pretrained(folder / "model")
    assert prune(capsys, folder, folder / "packed", "--pattern", "50%", "--samples", 8)[0] == 0
    found, exact = dense(folder / "packed"), model.float().eval()
    batches = _language.read_tokens(folder / "text", folder / "model", 8, 128)
    fst.prune_model(exact, "50%", batches)
    for name, w in exact.named_parameters():
        assert found[name].dtype.name == "bfloat16"
        mine = found[name].astype(np.float32)
        assert np.mean((mine != 0) == (w.detach().numpy() != 0)) > 0.97
        assert name.endswith(("embed_tokens.weight", "lm_head.weight", "norm.weight")) or np.mean(mine == 0) >= 0.5


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
@pytest.mark.parametrize("grams", [True, False])
def test_calibrate_stores_what_goes_into_each_layer(tmp_path, capsys, name, grams):
    folder = make(tmp_path, name)
    options = (
        "--data",
        folder / "text",
        "--samples",
        4,
        "--length",
        64,
        "--clip",
        0.9,
        *(["--grams"] if grams else []),
    )
    out = folder / "statistics.safetensors"
    code, _, err = run(capsys, "calibrate", folder / "model", out, *options)
    assert code == 0, err
    found = calibration.load_statistics(out)
    assert (found.model, found.tokens, len(found)) == ("model", 4 * 64, 14 if name == "Llama" else 8)
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    seen = {layer: [] for layer in found}
    for layer in found:
        hook = model.get_submodule(layer).register_forward_pre_hook
        hook(lambda module, args, layer=layer: seen[layer].append(args[0][0].numpy()))
    with torch.no_grad():
        for x in _language.read_tokens(folder / "text", folder / "model", 4, 64):
            model(x)
    for layer, inputs in seen.items():
        norms = [np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in inputs]
        weights = [np.minimum(1, 0.9 * np.median(norm) / norm) for norm in norms]
        assert all((weight < 1).any() for weight in weights)
        x = np.concatenate([x * weight for x, weight in zip(inputs, weights, strict=True)])
        assert found[layer].tokens == len(x)
        assert found[layer].transposed == (name == "GPT-2")
        assert np.allclose(found[layer].norms, np.sqrt((x * x).sum(0)), rtol=1e-4)
        assert found[layer].gram is None if not grams else np.allclose(found[layer].gram, x.T @ x, rtol=1e-3, atol=1e-3)
    assert run(capsys, "calibrate", folder / "model", out, *options)[0] == 1
    assert not (folder / ".statistics.safetensors.stages").exists()


@pytest.mark.parametrize("name", ["Llama", "GPT-2"])
def test_statistics_stand_for_a_forward(tmp_path, capsys, monkeypatch, name):
    folder = make(tmp_path, name)
    options = ("--data", folder / "text", "--samples", 8, "--length", 128)
    for out, grams in (("norms", ()), ("grams", ("--grams",))):
        assert run(capsys, "calibrate", folder / "model", folder / f"{out}.safetensors", *options, *grams)[0] == 0
    recipe = folder / "dense.toml"
    recipe.write_text("[calibration]\nsequential = false\n")
    run_block = _blocks.Call.run
    for method, out in ((("--method", "wanda", "--refine", 0, "--allocation", "owl"), "norms"), ((), "grams")):
        pattern = ("--pattern", "50%", *method)
        whole = ("--data", folder / "text", "--samples", 8, "--length", 128, "--recipe", recipe)
        code, _, err = run(capsys, "prune", folder / "model", folder / f"{out}-expected", *pattern, *whole)
        assert code == 0, err
        monkeypatch.setattr(_blocks.Call, "run", None)
        stored = ("--statistics", folder / f"{out}.safetensors")
        code, _, err = run(capsys, "prune", folder / "model", folder / out, *pattern, *stored)
        assert code == 0, err
        monkeypatch.setattr(_blocks.Call, "run", run_block)
        expected, found = dense(folder / f"{out}-expected"), dense(folder / out)
        for key in expected:
            # Norms are stored in float32, and Gram matrices of one layer may be ranked the other way round by that.
            assert np.mean((found[key] != 0) == (expected[key] != 0)) > 0.999
            assert np.allclose(found[key], expected[key], atol=1e-4) or out == "norms"
    norms = ("--statistics", folder / "norms.safetensors")
    code, _, err = run(capsys, "prune", folder / "model", folder / "x", "--pattern", "50%", *norms)
    assert (code, "they are norms only, and sparsegpt takes Gram" in err) == (1, True)
    code, _, err = run(capsys, "prune", folder / "model", folder / "x", "--pattern", "50%")
    assert (code, "give --data" in err) == (2, True)


RECIPE = """
default = "50%"
[[rule]]
match = "down_proj"
pattern = "2:4"
method = "wanda"
[calibration]
data = "{data}"
samples = 3
length = 100
seed = 1
sequential = false
[method]
name = "magnitude"
refine = 0
[allocation]
kind = "owl"
lambda = 0.05
max = 0.6
"""


def test_statistics_tell_what_saw_no_token(tmp_path, capsys):
    folder = make(tmp_path, "Mixtral")
    data = ("--data", folder / "text", "--samples", 1, "--length", 2)
    assert run(capsys, "calibrate", folder / "model", folder / "s.safetensors", *data, "--grams")[0] == 0
    found = calibration.load_statistics(folder / "s.safetensors")
    unseen = {name for name, layer in found.items() if layer.tokens == 0}
    assert len(found) == 2 * (4 + 3 * 4)
    assert unseen
    assert all("experts" in name for name in unseen)
    pattern = ("--pattern", "50%")
    for more in (("--statistics", folder / "s.safetensors"), data):
        code, out, err = run(capsys, "prune", folder / "model", folder / "x", *pattern, *more, "--overwrite", "--json")
        assert code == 0, err
        rows = {row["name"].removesuffix(".weight"): row for row in json.loads(out)["layers"]}
        assert all((rows[name]["method"], rows[name]["reason"]) == ("magnitude", "it saw no token") for name in unseen)
    swept = checkpoint.sweep(folder / "model", ["50%"], statistics=found)
    weighted = {row.name.removesuffix(".weight") for row in swept.tensors if row.weighted}
    assert not weighted & unseen


def test_statistics_of_small_layers_and_shared_ones(tmp_path, capsys, monkeypatch):
    folder = make(tmp_path, "Llama")
    recipe = folder / "small.toml"
    recipe.write_text('default = "50%"\nmin_size = 500\n')
    data = ("--data", folder / "text", "--samples", 4, "--length", 64)
    assert run(capsys, "calibrate", folder / "model", folder / "s.safetensors", *data, "--grams")[0] == 0
    made, factorize = [], calibration.factorize
    monkeypatch.setattr(calibration, "factorize", lambda *args, **kwargs: made.append(1) or factorize(*args, **kwargs))
    options = ("--recipe", recipe, "--statistics", folder / "s.safetensors")
    code, _, err = run(capsys, "prune", folder / "model", folder / "x", *options)
    assert (code, len(made)) == (0, 2 * 4), err


def test_a_recipe_says_all(folder, capsys):
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(data=folder / "text"))
    code, out, err = run(capsys, "prune", folder / "model", folder / "packed", "--recipe", recipe, "--json")
    assert code == 0, err
    rows = {row["name"]: row for row in json.loads(out)["layers"] if row["method"]}
    ruled = {name: row for name, row in rows.items() if "down_proj" in name}
    assert {(row["method"], row["pattern"]) for row in ruled.values()} == {("wanda", "2:4")}
    others = [row for name, row in rows.items() if name not in ruled]
    assert {row["method"] for row in others} == {"magnitude"}
    assert len({row["sparsity"] for row in others}) > 1
    assert max(row["sparsity"] for row in others) <= 0.6
    assert sum(np.prod(row["shape"]) * (row["sparsity"] - 0.5) for row in others) == pytest.approx(0, abs=1e-6)
    assert {row["tokens"] for row in rows.values()} == {300}
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    batches = _language.read_tokens(folder / "text", folder / "model", 3, 100, 1)
    fst.prune_model(model, checkpoint.Recipe.from_toml(recipe), batches)
    found = dense(folder / "packed")
    assert all(np.array_equal(found[key], p.detach().numpy()) for key, p in model.named_parameters())

    code, out, _ = run(capsys, "prune", folder / "model", "--recipe", recipe, "--method", "alps", "--plan")
    assert code == 0
    assert re.search(r"layers\.0\.mlp\.down_proj\.weight .* wanda +2:4", out)
    assert re.search(r"layers\.0\.mlp\.up_proj\.weight .* alps +50%", out)
    code, _, err = run(capsys, "compress", folder / "model", folder / "x", "--recipe", recipe)
    assert (code, "[calibration] needs calibration data; use fastsparse prune" in err) == (1, True)


def test_pieces_are_drawn(folder):
    first = _language.read_tokens(folder / "text", folder / "model", 4, 100)
    drawn = _language.read_tokens(folder / "text", folder / "model", 4, 100, 7)
    again = _language.read_tokens(folder / "text", folder / "model", 4, 100, 7)
    every = [piece.tolist() for piece in _language.read_tokens(folder / "text", folder / "model", 40, 100)]
    assert [piece.tolist() for piece in first] == every[:4]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    places = [every.index(piece.tolist()) for piece in drawn]
    assert places == sorted(set(places))
    assert places != [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*loaded as a whole:RuntimeWarning")
def test_blocks_that_cannot_be_run_one_by_one(folder, capsys, monkeypatch):
    monkeypatch.setattr(_blocks, "_stand_ins_do", lambda *_: False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code, _, err = prune(capsys, folder, folder / "packed", "--pattern", "50%", "--samples", 4)
    assert code == 0, err
    said = [str(warning.message) for warning in caught] + err.splitlines()
    assert any("blocks cannot be run one by one: it is loaded as a whole" in line for line in said)
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    batches = _language.read_tokens(folder / "text", folder / "model", 4, 128)
    fst.prune_model(model, "50%", batches, sequential=False)
    found = dense(folder / "packed")
    assert all(np.array_equal(found[key], p.detach().numpy()) for key, p in model.named_parameters())


def test_tokens_may_be_stored(folder):
    ids = np.arange(3, 63, dtype=np.int32).reshape(2, 30)
    checkpoint.save({"input_ids": ids}, folder / "ids.safetensors")
    found = _language.read_tokens(folder / "ids.safetensors", folder / "model", 2, 30)
    assert np.array_equal(torch.cat(found).numpy(), ids)


def test_pieces_of_stored_tokens_cross_no_rows_and_hold_no_padding(folder):
    ids = np.arange(40, dtype=np.int32).reshape(4, 10)
    mask = np.ones_like(ids)
    mask[1, 6:] = mask[3, :5] = 0
    ids[1, 6:] = -1  # padding need not be in the vocabulary
    data = folder / "ids.safetensors"
    checkpoint.save({"input_ids": ids, "attention_mask": mask}, data)
    found = _language.read_tokens(data, folder / "model", 6, 4)
    assert [piece[0, 0].item() for piece in found] == [0, 4, 10, 20, 24, 35]
    assert all(torch.equal(piece, piece[0, 0] + torch.arange(4)[None]) for piece in found)
    for tensors, message in (
        ({"input_ids": ids, "attention_mask": mask}, "31 tokens in 4 rows, which no piece crosses, fewer than 7 sampl"),
        ({"input_ids": ids}, "token -1 in row 1 is not in the model's vocabulary of 64"),
        ({"input_ids": ids + 40, "attention_mask": mask}, "token 64 in row 2 is not in the model's vocabulary of 64"),
        ({"input_ids": ids, "attention_mask": mask[:2]}, r"'attention_mask' is \[2, 10\], 'input_ids' \[4, 10\]"),
        ({"input_ids": ids[0]}, r"expected integers of two dimensions, got int32 \[10\]"),
        (
            {"input_ids": ids.astype(np.float32) + np.float32(0.5)},
            r"expected integers of two dimensions, got float32 \[4, 10\]",
        ),
    ):
        checkpoint.save(tensors, data, overwrite=True)
        with pytest.raises(fs.FastSparseError, match=message):
            _language.read_tokens(data, folder / "model", 7, 4)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_eval_holds_one_block(folder, capsys, monkeypatch, one_by_one):
    texts = _language.read_tokens(folder / "test", folder / "model", 3, 128)
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    with torch.no_grad():
        expected = np.exp(np.mean([float(model(input_ids=x, labels=x).loss) for x in texts]))
    loaded = watch_memory(monkeypatch)
    if not one_by_one:
        monkeypatch.setattr(_blocks, "_stand_ins_do", lambda *_: False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = ("--data", folder / "test", "--samples", 3, "--length", 128, "--json")
        code, out, err = run(capsys, "eval", folder / "model", *options)
    assert code == 0, err
    assert json.loads(out) == {"perplexity": pytest.approx(expected, rel=1e-6), "tokens": 3 * 128}
    assert loaded == ({1} if one_by_one else set())
    said = [str(warning.message) for warning in caught] + err.splitlines()
    assert any("it is loaded as a whole" in line for line in said) != one_by_one


@pytest.mark.parametrize("packed", [False, True])
def test_eval_of_a_router_that_is_asked_for_its_logits(tmp_path, capsys, packed):
    folder = make(tmp_path, "Mixtral")
    model = T.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    texts = _language.read_tokens(folder / "test", folder / "model", 2, 64)
    with torch.no_grad():
        logits = [model(input_ids=x, output_router_logits=False).logits[0, :-1] for x in texts]
    losses = [torch.nn.functional.cross_entropy(y, x[0, 1:]).double() for y, x in zip(logits, texts, strict=True)]
    if packed:
        assert run(capsys, "compress", folder / "model", folder / "x", "--pattern", "nonzero")[0] == 0
    options = ("--data", folder / "test", "--samples", 2, "--length", 64, "--json")
    code, out, err = run(capsys, "eval", folder / ("x" if packed else "model"), *options)
    assert code == 0, err
    assert json.loads(out)["perplexity"] == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-6)


@pytest.mark.parametrize("shape", [None, (64, 64)])
def test_a_dense_folder_without_a_tensor_is_not_measured(tmp_path, capsys, shape):
    folder = make(tmp_path, "Llama")
    name, file = "model.layers.0.mlp.down_proj.weight", folder / "model" / "model.safetensors"
    tensors = {key: np.array(array) for key, array in checkpoint.open(file).items()}
    del tensors[name]
    if shape is not None:
        tensors[name] = np.ones(shape, np.float32)
    checkpoint.save(tensors, file, metadata={"format": "pt"}, overwrite=True)
    code, out, err = run(capsys, "eval", folder / "model", "--data", folder / "test", "--samples", 1, "--length", 64)
    assert (code, out) == (1, "")
    expected = "no tensor for the model's" if shape is None else "is [64, 64], the model's [64, 128]"
    assert expected in err
    assert name in err


@pytest.mark.parametrize("name", ["GPT-2", "OPT"])
def test_pieces_longer_than_the_positions_of_a_model(tmp_path, capsys, name):
    folder = make(tmp_path, name)
    data = ("--data", folder / "text", "--samples", 2, "--length", 200)
    for command in (
        ("eval", folder / "model"),
        ("prune", folder / "model", folder / "x", "--pattern", "50%"),
        ("calibrate", folder / "model", folder / "x.safetensors"),
    ):
        code, _, err = run(capsys, *command, *data)
        assert (code, "length: the model does not take 200 tokens at once" in err) == (1, True), err


def test_errors_of_transformers_name_the_folder_once(folder, monkeypatch):
    def fail(*_, **__):
        raise ValueError

    monkeypatch.setattr(T.AutoConfig, "from_pretrained", fail)
    for message in (r"model: \S+: ValueError", r"model: \S+: expected a model folder with config.json"):
        for load in (lambda path: _language.load_weights(Reader(path)), lambda path: _folder.evaluate_folder(path, [])):
            with pytest.raises(fs.FastSparseError, match=f"^{message}$"):
                load(folder / "model")
        (folder / "model" / "config.json").unlink(missing_ok=True)


def test_bad_input_is_one_line(folder, capsys):
    def refused(command, *arguments):
        code, _, err = run(capsys, command, folder / "model", *arguments)
        assert code == 1
        assert len(err.strip().splitlines()) == 1, err
        return err

    to = (folder / "x", "--data", folder / "text", "--samples", 4, "--length", 64, "--pattern")
    short = refused("prune", folder / "x", "--pattern", "50%", "--data", folder / "short")
    assert "short has 10 tokens, fewer than 64 samples of 512" in short
    assert 'pattern: "nonzero" does not rank weights' in refused("prune", *to, "nonzero")
    assert "exclude: 'q_prj' matches no tensor; near" in refused("prune", *to, "50%", "--exclude", "q_prj")
    assert 'allocation: "owl" spreads an unstructured' in refused("prune", *to, "2:4", "--allocation", "owl")
    for pattern in ("nonzero", "threshold=0.1"):
        assert f'pattern: "{pattern}" does not rank' in refused("prune", "--pattern", pattern, "--plan")
    assert 'allocation: "owl" spreads' in refused("prune", "--pattern", "2:4", "--allocation", "owl", "--plan")
    nan = dense(folder / "model")
    bad = folder / "model"
    w = nan["model.embed_tokens.weight"].copy()
    w[5] = np.nan
    shard = json.loads((bad / "model.safetensors.index.json").read_text())["weight_map"]["model.embed_tokens.weight"]
    stored = checkpoint.open(bad / shard)
    changed = {name: w if name == "model.embed_tokens.weight" else np.array(stored[name]) for name in stored}
    del stored
    checkpoint.save(changed, bad / shard, metadata={"format": "pt"}, overwrite=True)
    assert "tensor 'model.layers.0.self_attn.q_proj.weight': x: nan at index" in refused("prune", *to, "50%")
    (bad / "tokenizer.json").unlink()
    (bad / "tokenizer_config.json").unlink()
    assert "no tokenizer" in refused("eval", "--data", folder / "test")
    config = json.loads((bad / "config.json").read_text())
    for change, message in (
        ({"model_type": "llamma"}, "llamma"),
        ({"hidden_size": 128}, "the model's [64, 128]"),
        ({"num_hidden_layers": 3}, "no tensor for the model's 'model.layers.2.self_attn.q_proj.weight'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
    ):
        (bad / "config.json").write_text(json.dumps({**config, **change}))
        checkpoint.save({"input_ids": np.arange(64).reshape(1, 64)}, folder / "ids.safetensors", overwrite=True)
        stored = ("--data", folder / "ids.safetensors", "--samples", 1, "--length", 64, "--pattern", "50%")
        assert message in refused("prune", folder / "x", *stored)
    (folder / "ids.safetensors").unlink()
    assert sorted(path.name for path in folder.iterdir()) == ["model", "short", "test", "text"]
