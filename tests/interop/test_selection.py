"""The default selection against models of transformers: what their modules are tells what is a weight, not its name."""

import inspect

import pytest
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

import fastsparse.torch as fst
from fastsparse import FastSparseError, Pattern
from fastsparse.checkpoint import Recipe

VOCABULARY, LABELS, EXPERTS = 523, 7, 5
"""No other lengths in the models: what has them is a table, an output layer, a router."""

SMALL = {
    "vocab_size": VOCABULARY,
    "decoder_vocab_size": VOCABULARY,
    "num_labels": LABELS,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 0,
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embedding_size", "n_embed", "embed_dim"], 64),
    **dict.fromkeys(["intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"], 128),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"], 1),
    **dict.fromkeys(["n_layer", "n_layers"], 1),
    **dict.fromkeys(
        ["num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "n_head", "n_heads"], 4
    ),
    "num_key_value_heads": 2,
    "head_dim": 16,
    "d_kv": 16,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
}
SPEECH = {"conv_dim": (32,), "conv_stride": (5,), "conv_kernel": (10,), "num_feat_extract_layers": 1}
KINDS: dict[str, dict] = {
    "albert": {},
    "bamba": {"attn_layer_indices": [], "mamba_n_heads": 8, "mamba_d_head": 16},
    "bart": {},
    "beit": {"use_relative_position_bias": True, "use_mask_token": True},
    "bert": {"position_embedding_type": "relative_key"},
    "bloom": {},
    "clip": {},
    "convnext": {"hidden_sizes": [32, 64], "depths": [1, 1], "num_stages": 2},
    "dbrx": {"ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": EXPERTS, "moe_top_k": 1}},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deepseek_v3": {"moe_intermediate_size": 64},
    "dinov2": {},
    "distilbert": {"dim": 64, "hidden_dim": 128},
    "electra": {},
    "falcon_mamba": {},
    "funnel": {"block_sizes": [1]},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {},
    "granitemoe": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 1, "expert_layer_offset": 0},
    "jetmoe": {"kv_channels": 16},
    "lfm2": {"layer_types": ["conv"]},
    "llama": {},
    "llama4_text": {"intermediate_size_mlp": 128, "interleave_moe_layer_step": 1},
    "m2m_100": {},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mixtral": {},
    "opt": {},
    "perceiver": {"num_latents": 40, "d_latents": 64, "num_blocks": 1, "num_self_attends_per_block": 1},
    "qwen2_moe": {},
    "qwen3_next": {"layer_types": ["linear_attention"]},
    "recurrent_gemma": {},
    "roberta": {},
    "rwkv": {"attention_hidden_size": 64, "num_hidden_layers": 2},
    "siglip": {},
    "swin": {"depths": [1], "num_heads": [2], "embed_dim": 32},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5": {},
    "vit": {},
    "vitdet": {"use_relative_position_embeddings": True, "use_absolute_position_embeddings": True},
    "vits": {},
    "wav2vec2": SPEECH,
    "wavlm": SPEECH,
    "whisper": {},
    "xlnet": {},
}
HEADED = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    modeling_auto.MODEL_FOR_CTC_MAPPING,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING,
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)
LINEAR = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.Bilinear)
OTHERS = ("rel_attn.", ".r_kernel", "_gate_weight", "in_proj_weight")
"""Weights of XLNet, Funnel, RecurrentGemma and of torch's attention that no linear layer holds."""


def made(kind: str) -> transformers.PreTrainedModel:
    config_class = CONFIG_MAPPING[kind]
    known = {*inspect.signature(config_class.__init__).parameters, *config_class.attribute_map, "num_labels"}
    config = config_class(**{name: value for name, value in SMALL.items() if name in known} | KINDS[kind])
    model_class = next(mapping[config_class] for mapping in HEADED if config_class in mapping)
    with torch.device("meta"):
        return (model_class[0] if isinstance(model_class, tuple) else model_class)(config)


def is_weight(model: nn.Module, module: nn.Module, name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor of a module is multiplied with activations, and neither a head's nor a router's."""
    attribute = name.rpartition(".")[2]
    if {VOCABULARY, LABELS, EXPERTS, 1} & {tensor.shape[0]} and tensor.dim() == 2:
        return False
    if module is getattr(model, "get_output_embeddings", lambda: None)():
        return False
    if isinstance(module, nn.Conv1d) and module.groups == module.in_channels and module.kernel_size[0] <= 4:
        return False
    if isinstance(module, LINEAR):
        return attribute == "weight"
    if "Experts" in type(module).__name__ or "ExpertGLU" in type(module).__name__:
        return not attribute.endswith("bias")
    return any(mark in name for mark in OTHERS) and not attribute.endswith(("bias", "embed"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_linear_layers_hold(kind):
    model = made(kind)
    tensors, weights = {}, set()
    for path, module in model.named_modules():
        held = dict(module._parameters)
        held |= {name: b for name, b in module._buffers.items() if name not in module._non_persistent_buffers_set}
        for attribute, tensor in held.items():
            if tensor is None or tensor.dim() < 2:
                continue
            name = f"{path}.{attribute}" if path else attribute
            tensors[name] = "F32", tuple(tensor.shape)
            if is_weight(model, module, name, tensor):
                weights.add(name)
    chosen = Recipe(default="50%", min_size=0).choose_all(tensors)
    taken = {name for name, pattern in chosen.items() if isinstance(pattern, Pattern)}
    assert taken == weights, {name: chosen[name] for name in taken ^ weights}
    assert weights


def test_sparsify_refuses_expressions_that_match_nothing():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model.router = nn.Linear(64, 64)
    with pytest.raises(FastSparseError, match=r"exclude: 'rooter' matches no tensor; near are 'router\.weight'"):
        fst.sparsify(model, Recipe(default="50%", exclude=["rooter"]))
    assert all(type(layer) is nn.Linear for layer in model)
    reasons = {row.name: row.reason for row in fst.sparsify(model, "50%").tensors}
    assert reasons["router.weight"] == "a router of experts"
    assert reasons["0.weight"] is None
