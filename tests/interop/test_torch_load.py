"""Packed files and folders in models, beside the dense models that torch loads from what is decompressed."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import checkpoint


class Net(nn.Module):
    """Linear layers of every kind that matters here: in two places, tied, a subclass, and other tensors."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(64, 64, dtype=dtype)
        self.again = self.first
        self.other = nn.Linear(64, 64, bias=False, dtype=dtype)
        self.other.weight = self.first.weight
        self.conv = nn.Conv1d(64, 64, 3, dtype=dtype)
        self.norm = nn.BatchNorm1d(64, dtype=dtype)
        self.last = nn.Linear(64, 96, dtype=dtype)

    def forward(self, x):
        x = self.other(self.again(self.first(x)))
        return self.last(self.norm(self.conv(x.T[None])[0].T))


def made(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return Net(dtype).eval()


def names(report, reason):
    return [row.name for row in report.tensors if (row.reason or "") == reason]


@pytest.fixture
def files(tmp_path):
    """A dense file without the tied name, it packed, and it decompressed."""
    state = made(0).state_dict()
    save_file({k: v for k, v in state.items() if not k.startswith(("again", "other"))}, tmp_path / "dense.safetensors")
    checkpoint.compress(tmp_path / "dense.safetensors", tmp_path / "packed.safetensors", "50%")
    checkpoint.decompress(tmp_path / "packed.safetensors", tmp_path / "back.safetensors")
    return tmp_path


@pytest.mark.parametrize("start", ["dense", "packed", "bfloat16", "meta"])
def test_a_packed_file_goes_into_a_model(files, start):
    dtype = torch.bfloat16 if start == "bfloat16" else torch.float32
    expected = made(1, dtype)
    expected.load_state_dict(load_file(files / "back.safetensors"), strict=False)
    if start == "meta":
        with torch.device("meta"):
            model = Net().eval()
    else:
        model = made(1, dtype)
    if start == "packed":
        fst.sparsify(model, "75%")
        model.other = model.first  # of tied layers each has been packed by itself
    report = fst.load(model, files / "packed.safetensors")
    assert names(report, "") == ["first.weight", "last.weight"]
    assert names(report, "unpacked: of a Conv1d, not a Linear") == ["conv.weight"]
    assert set(names(report, "dense in the file")) > {"first.bias", "norm.running_mean"}
    assert (report.packed, report.sparsity) == (2, 0.5)
    assert model.first is model.again
    assert model.first.packed == model.other.packed
    assert model.other.bias is (model.first.bias if start == "packed" else None)
    assert model.first.packed.dtype.name == str(dtype).removeprefix("torch.")
    assert model.last.name == "last"
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    if start == "packed":
        expected.other = expected.first
    x = torch.randn(8, 64).to(dtype)
    with torch.no_grad():
        bound = 1e-5 if dtype is torch.float32 else 5e-2
        torch.testing.assert_close(model(x), expected(x), rtol=bound, atol=bound)
    model = fst.to_dense(model)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_dense_file_makes_packed_layers_dense(files):
    model, dense = made(1), made(0)
    fst.sparsify(model, "50%")
    model.other, dense.other = model.first, dense.first
    report = fst.load(model, files / "dense.safetensors")
    assert report.packed == 0
    assert type(model.first) is nn.Linear
    assert model.first is model.other
    assert torch.equal(model(torch.ones(8, 64)), dense(torch.ones(8, 64)))


def test_a_packed_folder_goes_into_a_model_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    dense = transformers.LlamaForCausalLM(config).eval()
    dense.save_pretrained(tmp_path / "dense", max_shard_size="100kB")
    checkpoint.compress(tmp_path / "dense", tmp_path / "packed", "2:4")
    checkpoint.decompress(tmp_path / "packed", tmp_path / "back")
    model = transformers.LlamaForCausalLM(config).eval()
    report = fst.load(model, tmp_path / "packed")
    assert report.packed == 14
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "back").eval()
    tokens = torch.arange(1, 13).view(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=1e-5, atol=1e-5)


def test_names_and_shapes_that_do_not_fit(files):
    path = files / "packed.safetensors"
    wide = made(1)
    wide.last = nn.Linear(32, 96)
    more = made(1)
    more.more = nn.Linear(2, 2)
    fewer = made(1)
    del fewer.last
    split = made(1)
    split.other.weight = nn.Parameter(split.other.weight.clone())
    cases = {
        r"tensor 'last.weight': the model's shape is \(96, 32\), not \(96, 64\)": wide,
        r"packed.safetensors: the file has no 'more.weight', 'more.bias'": more,
        r"packed.safetensors: the model has no 'last.bias', 'last.weight'": fewer,
        r"packed.safetensors: the file has no 'other.weight'": split,
        r"a linear layer cannot be replaced in place": nn.Linear(2, 2),
    }
    for message, model in cases.items():
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(fs.FastSparseError, match=message):
            fst.load(model, path)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    more.last = nn.Identity()
    report = fst.load(more, path, strict=False)
    assert names(report, "not in the file") == ["more.weight", "more.bias"]
    assert set(names(report, "not in the model")) == {"last.weight", "last.bias"}
    assert isinstance(more.first, fst.SparseLinear)


def test_a_file_that_contradicts_itself_changes_nothing(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    tied = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    tied[1].weight = tied[0].weight
    state = {f"{i}.weight": fs.compress(torch.randn(64, 64).numpy(), "50%") for i in (0, 1)}
    checkpoint.save(state, tmp_path / "two.safetensors")
    with pytest.raises(fs.FastSparseError, match=r"'0.weight' and '1.weight' are one tensor of the model, but differ"):
        fst.load(tied, tmp_path / "two.safetensors")
    parts = load_file(tmp_path / "two.safetensors")
    parts["1.bitmask"][0] ^= 1
    save_file(parts, tmp_path / "bad.safetensors")
    with pytest.raises(fs.FormatError, match=r"1.weight"):
        fst.load(model, tmp_path / "bad.safetensors")
    assert type(model[0]) is nn.Linear
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        empty.register_buffer("frequencies", torch.ones(3), persistent=False)
    with pytest.raises(fs.FastSparseError, match="buffer 'frequencies' is on the meta device and in no checkpoint"):
        fst.load(empty, tmp_path / "two.safetensors")
