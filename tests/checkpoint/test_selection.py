"""The default selection: names of real models, layers of quantised checkpoints, expressions that match nothing."""

import json

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.checkpoint import Recipe, Rule

F8 = ml_dtypes.float8_e4m3fn

WEIGHTS = {
    "model.layers.0.mlp.gate_proj.weight": (128, 64),
    "bert.encoder.layer.0.attention.output.dense.weight": (64, 64),  # not the model's `output`
    "vision_model.embeddings.patch_embedding.weight": (64, 3, 8, 8),
    "embeddings.patch_embeddings.projection.weight": (64, 3, 8, 8),
    "time_embedding.linear_1.weight": (64, 64),  # a layer whose output is called an embedding
    "lm_head.dense.weight": (64, 64),
    "features.classifier.6.weight": (64, 64),  # VGG's hidden layers
    "blocks.0.att.gate.weight": (64, 64),  # RWKV's output gate
    "blocks.0.ffn.gate.weight": (128, 64),  # of a gated layer; routers are wide
    "backbone.layers.0.mixer.x_proj.weight": (64, 64),
    "down_blocks.0.attentions.0.proj_out.weight": (64, 64),
    "encoder.dwconv.weight": (64, 1, 7, 7),
    "feature_extractor.conv_layers.0.conv.weight": (512, 1, 10),
    "mlp.experts.gate_up_proj": (8, 64, 128),
    "ffn.experts.mlp.w1": (256, 64),
    "encoder.attn.in_proj_weight": (192, 64),
    "rnn.weight_hh_l0_reverse": (256, 64),
    "params/layer_0/dense/kernel": (64, 64),
    "decoder.up_blocks.0.upsamplers.0.resample.1.weight": (64, 64, 3, 3),
    "blocks.0.attn.W_Q": (4, 64, 16),
    "norm1.linear.weight": (384, 64),
    "x_embedder.weight": (64, 64),  # of diffusion models: linear
    "layers.0.ffn.w1": (64, 64),
    "w": (64, 64),
}

OTHERS = {
    "an attention mask": {"h.0.attn.bias": (1, 1, 64, 64), "causal_mask": (64, 64)},
    "a fixed basis of a signal transform": {
        "stft.forward_basis_buffer": (258, 1, 256),
        "stft_conv.weight": (258, 1, 256),
        "spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        "logmel_extractor.melW": (513, 64),
        "mel_scale.fb": (201, 80),
        "mfcc.dct_mat": (128, 40),
        "feature_extractor.mel_filters": (201, 80),
    },
    "a rotary table": {"rotary_emb.cos_cached": (512, 64), "freqs_cis": (512, 64), "rotary_emb.inv_freq": (64, 64)},
    "a position table": {
        "embeddings.position_embeddings": (1, 197, 768),
        "model.decoder.embed_positions.weight": (512, 64),
        "transformer.wpe.weight": (512, 64),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (320, 8),
        "layers.0.attn.relative_position_bias_table": (225, 32),
        "blocks.0.attn.rel_pos_h": (127, 64),
        "distance_embedding.weight": (127, 64),
        "vision_model.positional_embedding": (257, 64),
    },
    "a codebook": {"quantizer.layers.0.codebook.embed": (1024, 8), "l.res_centroids.weight": (1, 4096)},
    "an embedding": {
        "emb.weight": (512, 64),
        "tok_embeddings.weight": (512, 64),
        "transformer.wte.weight": (512, 64),
        "decoder.embed_tokens.0.weight": (512, 64),
        "shared.weight": (512, 64),
        "embeddings.token_type_embeddings.weight": (512, 64),
    },
    "an output layer": {
        "output.weight": (512, 64),
        "lm_head.weight": (512, 64),
        "embed_out.weight": (512, 64),
        "cls.predictions.decoder.weight": (512, 64),
        "score.weight": (64, 64),
        "classifier.weight": (64, 64),
        "lm_heads.3.weight": (512, 64),
        "lm_head.linear.weight": (512, 64),
    },
    "a router of experts": {
        "mlp.gate.weight": (64, 2048),
        "layers.0.block_sparse_moe.gate.weight": (8, 512),
        "mlp.router.weight": (64, 64),
        "mlp.router.classifier.weight": (8, 512),
        "mlp.shared_expert_gate.weight": (1, 4096),
        "mlp.gate.wg.weight": (8, 512),
        "backbone.layers.0.mixer.gate.weight": (128, 2688),
    },
    "a short convolution, as state-space layers have": {
        "mixer.conv1d.weight": (1024, 1, 4),
        "mlx.mixer.conv1d.weight": (1024, 4, 1),
    },
    "a constant of a state-space layer": {"mixer.A_log": (512, 16), "mixer.D": (64, 64), "mixer.dt_bias": (64, 64)},
    "a time mixing parameter": {"blocks.0.att.time_decay": (64, 64), "blocks.0.att.w1": (512, 64)},
    "a scale, shift or gate of activations": {
        "scale_shift_table": (6, 1152),
        "blocks.0.modulation": (1, 6, 1152),
        "blocks.0.gamma_1": (64, 64),
    },
    "a learned token or query": {"query_tokens": (1, 32, 768), "cls_token": (1, 1, 4096), "latents": (64, 512)},
    "a bias": {"mlp.experts.gate_up_proj_bias": (32, 5760)},
    "a normalisation": {"self_attn.q_norm.weight": (32, 128)},
    "a factor of a low-rank adapter": {"q_proj.lora_A.default.weight": (64, 64)},
    "part of a computed weight, make that permanent first": {
        "conv.parametrizations.weight.original1": (64, 48, 128),
        "conv.weight_v": (64, 48, 128),
        "fc.weight_mask": (64, 64),
    },
    "not named like a weight": {"layers.0.mystery": (64, 64)},
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_get_the_default(name):
    assert str(Recipe.of("50%").choose(name, "F32", WEIGHTS[name])) == "50%"


@pytest.mark.parametrize("reason", OTHERS)
def test_what_is_no_weight_stays_dense_with_its_reason(reason):
    tensors = {name: ("BF16", shape) for name, shape in OTHERS[reason].items()}
    assert Recipe.of("50%").choose_all(tensors) == dict.fromkeys(tensors, reason)


def test_only_expressions_that_name_it_reach_what_is_no_weight():
    tensors = {
        "layers.0.attn.bias": ("F32", (64, 64)),
        "layers.0.attn.q.weight": ("F32", (64, 64)),
        "emb.weight": ("F32", (64, 64)),
    }
    everything = Recipe(default="50%", include=["attn", "."])
    assert everything.choose_all(tensors)["layers.0.attn.bias"] == "an attention mask"
    assert isinstance(everything.choose_all(tensors)["emb.weight"], fs.Pattern)
    for recipe in (Recipe(rules=[Rule(r"attn\.bias", "2:4")]), Recipe(default="2:4", include=[r"attn\.bias$"])):
        assert str(recipe.choose_all(tensors)["layers.0.attn.bias"]) == "2:4"
    assert Recipe(rules=[Rule("layers", "2:4")]).choose_all(tensors)["layers.0.attn.bias"] == "an attention mask"


@pytest.mark.parametrize(("name", "reason"), [("norm", "a normalisation"), ("router", "a router of experts")])
def test_rules_for_a_block_mean_neither_its_norms_nor_its_routers(name, reason):
    tensors = {f"layers.0.{name}.weight": ("F32", (64,)), "layers.0.up.weight": ("F32", (64, 64))}
    chosen = Recipe(rules=[Rule("layers.0", "50%")]).choose_all(tensors)
    assert chosen[f"layers.0.{name}.weight"] == reason
    assert str(chosen["layers.0.up.weight"]) == "50%"
    assert str(Recipe(rules=[Rule(name, "50%")]).choose_all(tensors)[f"layers.0.{name}.weight"]) == "50%"


# Layers of quantised checkpoints, as the named tools write them: keys of one module with dtypes and
# shapes.
QUANTISED = {
    "fp8 block": {"weight": ("F8_E4M3", (256, 256)), "weight_scale_inv": ("F32", (64, 64))},
    "fp8 channel": {"weight": ("F8_E4M3", (4096, 64)), "weight_scale": ("BF16", (4096, 1))},
    "gptq": {
        "qweight": ("I32", (128, 4096)),
        "qzeros": ("I32", (8, 512)),
        "scales": ("F16", (8, 4096)),
        "g_idx": ("I32", (1024,)),
    },
    "awq": {"qweight": ("I32", (4096, 128)), "qzeros": ("I32", (32, 128)), "scales": ("F16", (32, 1024))},
    "nvfp4": {
        "weight_packed": ("U8", (256, 128)),
        "weight_scale": ("F8_E4M3", (256, 16)),
        "weight_global_scale": ("F32", (1,)),
    },
    "modelopt nvfp4": {
        "weight": ("U8", (256, 128)),
        "weight_scale": ("F8_E4M3", (256, 16)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    },
    "mxfp4": {
        "gate_up_proj_blocks": ("U8", (8, 64, 4, 16)),
        "gate_up_proj_scales": ("U8", (8, 64, 4)),
        "gate_up_proj_bias": ("BF16", (8, 512)),
    },
    "mlx": {"weight": ("U32", (256, 64)), "scales": ("BF16", (256, 16)), "biases": ("BF16", (256, 16))},
    "bitsandbytes int8": {"weight": ("I8", (256, 256)), "SCB": ("F32", (256,)), "weight_format": ("U8", ())},
    "bitsandbytes 4 bits": {
        "weight": ("U8", (32768, 1)),
        "weight.absmax": ("F32", (64, 64)),
        "weight.nested_absmax": ("F32", (64, 64)),
        "weight.quant_map": ("F32", (16,)),
    },
    "hqq": {"W_q": ("U8", (128, 256)), "scale": ("F16", (4096, 1)), "zero": ("F16", (4096, 1))},
    "aqlm": {"codes": ("I16", (64, 32, 2)), "codebooks": ("F16", (2, 256, 1, 8)), "scales": ("F16", (4096, 1, 1, 1))},
    "vptq": {"indices": ("I32", (1, 64, 64)), "centroids.weight": ("F16", (1, 4096)), "weight_scale": ("F16", (4096,))},
    "torchao": {"_weight_qdata": ("I8", (256, 256)), "_weight_scale": ("F32", (256, 16))},
    "quanto": {"weight._data": ("I8", (256, 256)), "weight._scale": ("BF16", (4096, 1))},
    "int8 asymmetric": {
        "weight": ("I8", (4096, 64)),
        "weight_scale": ("F32", (4096, 1)),
        "weight_zero_point": ("I8", (4096, 1)),
    },
    "a method nobody knows": {"stuff": ("U8", (64, 64)), "xy_table": ("F32", (64, 64))},
}


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("recipe", ["50%", "global", "layers"])
def test_nothing_of_a_quantised_layer_is_pruned(kind, recipe):
    tensors = {f"model.layers.0.q_proj.{leaf}": entry for leaf, entry in QUANTISED[kind].items()}
    tensors |= {"model.layers.1.q_proj.weight": ("BF16", (64, 64)), "model.layers.1.q_proj.bias": ("BF16", (64,))}
    made = {
        "50%": Recipe.of("50%"),
        "global": Recipe(default="50%", scope="global"),
        "layers": Recipe(rules=[Rule(r"layers\.0", "50%")], default="50%"),
    }[recipe]
    for method in (None, kind):
        chosen = made.choose_all(tensors, method)
        pruned = {name for name, pattern in chosen.items() if isinstance(pattern, fs.Pattern)}
        assert pruned == {"model.layers.1.q_proj.weight"}


FP8 = {"l.weight": ("F8_E4M3", (128, 64)), "m.weight": ("F8_E4M3", (128, 64))}


@pytest.mark.parametrize(
    ("scale", "recipe", "sound"),
    [
        ((), "50%", True),
        ((1,), "2:4", True),
        ((), Recipe(default="50%", scope="global"), False),
        ((), "threshold=0.01", False),
        ((128, 1), "2:4", True),
        ((128, 1), "50%/row", True),
        ((128,), "top8/64", True),
        ((128, 1), "50%", False),
        ((128, 1), "75%/4x1", False),
        ((128, 1), fs.NM(zeros=2, of=4, axis=0), False),
        ((2, 1), "50%", False),
        ((2, 1), "nonzero", True),
    ],
)
def test_fp8_weights_are_ranked_where_all_that_compete_have_one_scale(scale, recipe, sound):
    chosen = Recipe.of(recipe).choose_all({**FP8, "l.weight_scale": ("F32", scale)})
    assert isinstance(chosen["l.weight"], fs.Pattern) is sound
    assert sound or "l.weight_scale" in chosen["l.weight"]
    assert isinstance(chosen["m.weight"], fs.Pattern), "it has no scale"


def test_that_is_sound_indeed():
    """The mask of the stored values is that of the values that they stand for."""
    rng = np.random.default_rng(1)
    stored = rng.normal(size=(128, 64)).astype(F8)
    scale = rng.uniform(0.5, 2, (128, 1)).astype(np.float32)
    for pattern, scales in (("2:4", scale), ("50%/row", scale), ("50%", scale[:1])):
        assert fs.select(stored, pattern) == fs.select(stored.astype(np.float32) * scales, pattern)
    assert fs.select(stored, "50%") != fs.select(stored.astype(np.float32) * scale, "50%")


def test_where_the_config_says_that_it_is_quantised_unknown_scales_are_no_reason_to_prune():
    assert all(isinstance(chosen, fs.Pattern) for chosen in Recipe.of("50%").choose_all(FP8).values())
    reasons = Recipe.of("50%").choose_all(FP8, "fp8")
    assert set(reasons.values()) == {"quantised by fp8: what is stored are not its weights"}


def test_scales_are_kept_by_files_whose_keys_or_config_tell(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "l.weight": (rng.normal(size=(256, 256)) * 60).astype(F8),
        "l.weight_scale_inv": rng.uniform(1e-3, 1e-2, (64, 64)).astype(np.float32),
        "m.weight": rng.normal(size=(64, 64)).astype(np.float32),
    }
    (tmp_path / "src").mkdir()
    checkpoint.save(tensors, tmp_path / "src" / "model.safetensors")
    (tmp_path / "src" / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    for src in (tmp_path / "src", tmp_path / "src" / "model.safetensors"):
        dst = tmp_path / f"dst-{src.name}"
        report = checkpoint.compress(src, dst, Recipe(default="50%", scope="global"))
        assert {row.name for row in report.tensors if row.sparsity} == {"m.weight"}
        assert all(row.reason for row in report.tensors if row.name != "m.weight")
        np.testing.assert_array_equal(checkpoint.open(dst)["l.weight_scale_inv"], tensors["l.weight_scale_inv"])


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "unheard-of-quantized"}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"format": "new"}}}},
        {"compression_config": {"format": "marlin-24"}},
        {"sparsity_config": {"format": "unheard-of"}},
    ],
)
def test_what_decompress_would_refuse_is_refused_before_it_is_packed(tmp_path, config):
    src = tmp_path / "src"
    src.mkdir()
    checkpoint.save({"a.weight": np.ones((64, 64), np.float32)}, src / "model.safetensors")
    (src / "config.json").write_text(json.dumps(config))
    for work in (
        lambda: checkpoint.plan(src, "50%"),
        lambda: checkpoint.compress(src, tmp_path / "dst", "50%"),
        lambda: checkpoint.decompress(src, tmp_path / "dst"),
    ):
        with pytest.raises(fs.FormatError, match=r"config\.json: .*format"):
            work()
    assert not (tmp_path / "dst").exists()


NAMES = ["layers.0.mlp.router.weight", "layers.0.mlp.up_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"exclude": ["re:.*router"]}, r"exclude: 're:\.\*router' .*write '\.\*router', without 're:'"),
        ({"exclude": ["rooter"]}, r"exclude: 'rooter' .*near are 'layers\.0\.mlp\.router\.weight'"),
        ({"exclude": ["layers.*.router$"]}, r"write 'layers\.\*\.router', without '\$'"),
        ({"rules": [Rule("re:.*router", skip=True)]}, r"rule: 're:"),
        ({"include": ["layers.1.mlp.up_proj.weight"]}, r"include: .*near are 'layers\.0\.mlp\.up_proj\.weight'"),
        ({"include": ["no such tensor"]}, r"names are like 'layers\.0"),
        ({"exclude": ["{router,lm_head}"]}, r"write '\(router\|lm_head\)' for"),
        ({"exclude": ["lm_head", "l?_head"]}, None),
        ({"exclude": ["Linear"]}, r"not classes of layers; near|not classes of layers; names"),
        ({"exclude": ["re:.*rooter"]}, r"without 're:'; near are 'layers\.0\.mlp\.router\.weight'"),
        ({"exclude": ["lay*.0.*"]}, r"no glob but a regular expression: write '.*'"),
    ],
)
def test_an_expression_that_matches_nothing_is_answered(recipe, message):
    made = Recipe(default="50%", **recipe)
    tensors = dict.fromkeys(NAMES, ("F32", (64, 64)))
    if message is None:
        made.choose_all(tensors)
        return
    with pytest.raises(fs.FastSparseError, match=message):
        made.choose_all(tensors)


def test_every_way_in_refuses_it(tmp_path):
    checkpoint.save(dict.fromkeys(NAMES, np.ones((64, 64), np.float32)), tmp_path / "a.safetensors")
    (tmp_path / "r.toml").write_text("default = '50%'\n[[rule]]\nmatch = 'rooter'\nskip = true\n")
    recipe = Recipe.from_toml(tmp_path / "r.toml")
    for work in (
        lambda: checkpoint.plan(tmp_path / "a.safetensors", recipe),
        lambda: checkpoint.compress(tmp_path / "a.safetensors", tmp_path / "b.safetensors", recipe),
    ):
        with pytest.raises(fs.FastSparseError, match=r"a\.safetensors: rule: 'rooter' matches no tensor"):
            work()
    assert not (tmp_path / "b.safetensors").exists()


def test_globs_that_are_no_regular_expression_are_explained():
    with pytest.raises(fs.FastSparseError, match=r"for the glob write 'router\\.weight'"):
        Recipe(default="50%", exclude=["*router.weight"])
