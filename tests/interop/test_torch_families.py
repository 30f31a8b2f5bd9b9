"""Fifty model classes of transformers, small and at random: sparsified, and beside the same model pruned dense."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_model
from transformers import CONFIG_MAPPING, MODEL_MAPPING

import fastsparse.torch as fst

# Whichever of these a configuration knows.
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "embedding_size": 64,
    "intermediate_size": 128,
    "d_ff": 128,
    "ffn_dim": 128,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "d_kv": 16,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
# One layer of convolutions in front of the encoders of speech.
SPEECH = {
    "conv_dim": (32,),
    "conv_stride": (5,),
    "conv_kernel": (10,),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_feat_extract_layers": 1,
}
CONV = {"of a Conv1d, not a Linear"}
SPEECH_CONV = {"of a ParametrizationList, not a Linear"}
IMAGE_CONV = {"of a Conv2d, not a Linear"}
# By the type of the model: what its configuration needs besides, and why layers stay dense.
FAMILIES: dict[str, tuple[dict, set[str]]] = {
    "albert": ({}, set()),
    "arcee": ({}, set()),
    "bart": ({}, set()),
    "beit": ({}, IMAGE_CONV),
    "bert": ({}, set()),
    "biogpt": ({}, set()),
    "blenderbot": ({}, set()),
    "bloom": ({"slow_but_exact": True, "pretraining_tp": 2}, set()),
    "clip_text_model": ({}, set()),
    "clip_vision_model": ({}, IMAGE_CONV),
    "cohere": ({}, set()),
    "deberta-v2": ({}, set()),
    "deit": ({}, IMAGE_CONV),
    "dinov2": ({}, IMAGE_CONV),
    "distilbert": ({"dim": 64, "hidden_dim": 128}, set()),
    "electra": ({}, set()),
    "falcon": ({"head_dim": None}, {"of a FalconLinear, not a Linear"}),
    "gemma3_text": ({}, set()),
    "glm": ({}, set()),
    "gpt2": ({}, set()),
    "gpt_bigcode": ({}, set()),
    "gpt_neox": ({}, set()),
    "gpt_oss": ({}, set()),
    "granitemoe": ({}, set()),
    "hubert": (SPEECH, SPEECH_CONV),
    "ibert": ({}, {"of a QuantLinear, not a Linear"}),
    "llama": ({}, set()),
    "llama4_text": ({"intermediate_size_mlp": 128}, set()),
    "mamba": ({}, set()),
    "marian": ({}, set()),
    "mixtral": ({}, set()),
    "modernbert": ({}, set()),
    "mpt": ({}, set()),
    "mt5": ({}, set()),
    "olmoe": ({}, set()),
    "opt": ({}, set()),
    "phi3": ({}, set()),
    "pegasus": ({}, set()),
    "qwen2": ({}, set()),
    "qwen3_moe": ({"moe_intermediate_size": 64}, set()),
    "recurrent_gemma": ({}, set()),
    "roberta": ({}, set()),
    "stablelm": ({}, set()),
    "squeezebert": ({}, set()),
    "t5": ({}, set()),
    "vit": ({}, IMAGE_CONV),
    "wav2vec2": (SPEECH, SPEECH_CONV),
    "wavlm": (SPEECH, SPEECH_CONV),
    "whisper": ({"max_source_positions": 32}, CONV),
    "xglm": ({}, set()),
}
NOTHING_PACKED = {"falcon"}
# These read the weights of some layers: in every forward pass they are unpacked, and a warning says
# so.
COMPUTES_WITH_WEIGHTS = {"bloom", "wavlm"}


def made(kind: str, options: dict) -> transformers.PreTrainedModel:
    config_class = CONFIG_MAPPING[kind]
    known = {*inspect.signature(config_class.__init__).parameters, *config_class.attribute_map, "use_cache"}
    torch.manual_seed(0)
    settings = {name: value for name, value in SMALL.items() if name in known} | options
    return MODEL_MAPPING[config_class](config_class(**{k: v for k, v in settings.items() if v is not None})).eval()


def inputs_of(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.arange(3, 11)[None]
    found = {
        "input_ids": {"input_ids": tokens},
        "pixel_values": {"pixel_values": torch.randn(1, 3, 32, 32)},
        "input_values": {"input_values": torch.randn(1, 800)},
        "input_features": {"input_features": torch.randn(1, 80, 64)},
    }[model.main_input_name]
    return found | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})


@pytest.mark.parametrize("kind", FAMILIES)
@torch.inference_mode()
def test_a_model_computes_what_it_does_pruned_dense(kind, recwarn):
    options, left = FAMILIES[kind]
    model = made(kind, options)
    dense, inputs = copy.deepcopy(model), inputs_of(model)
    report = fst.sparsify(model, "50%")
    for row in report.tensors:
        if row.pattern:
            weight = dense.get_parameter(row.name).data
            fst.prune(weight, row.pattern, out=weight)
    recwarn.clear()
    ours, again, expected = (each(**inputs).to_tuple() for each in (model, model, dense))
    computes = {"dense weight" in str(warning.message) for warning in recwarn}
    assert (True in computes) == (kind in COMPUTES_WITH_WEIGHTS)
    assert len(ours) == len(expected)
    for a, b, c in zip(ours, again, expected, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5 * float(c.abs().max()))
        torch.testing.assert_close(a, b)
    linear = [row for row in report.tensors if row.elements > 2048 and "embedding" not in (row.reason or "").lower()]
    assert {row.reason for row in linear if row.reason} == left
    assert (report.packed == 0) == (kind in NOTHING_PACKED)


TABLE = {
    "Llama": "llama",
    "Qwen 2": "qwen2",
    "GPT-2": "gpt2",
    "OPT": "opt",
    "BERT": "bert",
    "T5": "t5",
    "ViT": "vit",
    "Whisper": "whisper",
    "Mixtral": "mixtral",
    "gpt-oss": "gpt_oss",
    "Llama 4": "llama4_text",
}


def exports(model: torch.nn.Module, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether torch.export takes a model, and what it makes computes the same."""
    try:
        program = torch.export.export(model, (), inputs, strict=False)
    except Exception:  # whatever the model's code has that cannot be traced
        return False
    torch.testing.assert_close(program.module()(**inputs)[0], expected, rtol=1e-4, atol=1e-4)
    return True


@pytest.mark.parametrize("family", TABLE)
@torch.no_grad()
def test_the_table_of_families(family, tmp_path):
    """What docs/torch.md says about each of them."""
    kind = TABLE[family]
    model, fresh = made(kind, FAMILIES[kind][0]), made(kind, FAMILIES[kind][0])
    dense, inputs = copy.deepcopy(model), inputs_of(model)
    report = fst.sparsify(model, "50%")
    weights = [row for row in report.tensors if row.elements > 2048 and "mbedding" not in (row.reason or "")]
    share = sum(row.elements for row in weights if row.reason is None) / sum(row.elements for row in weights)
    for row in report.tensors:
        if row.pattern:
            fst.prune(dense.get_parameter(row.name).data, row.pattern, out=dense.get_parameter(row.name).data)
    expected = dense(**inputs)[0]
    torch.testing.assert_close(model(**inputs)[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    save_model(model, str(tmp_path / "model.safetensors"))
    assert fst.load(fresh, tmp_path / "model.safetensors", strict=False).packed == report.packed
    assert torch.equal(fresh(**inputs)[0], model(**inputs)[0])
    exported = "yes" if exports(model, inputs, expected) else "no" if exports(dense, inputs, expected) else "nor dense"
    line = f"| {family} | {share:.0%} | yes | yes | yes | {exported} |"
    assert line in (Path(__file__).parents[2] / "docs" / "torch.md").read_text(encoding="utf-8").splitlines()
