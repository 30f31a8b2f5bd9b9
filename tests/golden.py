"""The model in `tests/data/compressed_tensors`: a Llama so small that its folders are a few kilobytes each.

Its weights are computed, so that what the folders hold is known without the package that wrote them.
"""

import math

import numpy as np

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-06,
}
_LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (20, 16),
    **{f"{_LAYER}self_attn.{part}_proj.weight": (16, 16) for part in "qkvo"},
    f"{_LAYER}mlp.gate_proj.weight": (24, 16),
    f"{_LAYER}mlp.up_proj.weight": (24, 16),
    f"{_LAYER}mlp.down_proj.weight": (16, 24),
    f"{_LAYER}input_layernorm.weight": (16,),
    f"{_LAYER}post_attention_layernorm.weight": (16,),
    "model.norm.weight": (16,),
    "lm_head.weight": (20, 16),
}
EXTRA = {"conv.weight": (3, 2, 3, 3), "head.bias": (5,)}
"""Tensors of other ranks, for a file beside the model."""


def pruned(name: str) -> bool:
    """Whether the tensor has zeros: the linear layers of the blocks, and those beside the model."""
    return "_proj" in name or name in EXTRA


def weights(name: str) -> np.ndarray:
    """The tensor, float32, exact in bfloat16: one or two in every four are not zero, in norms and embeddings all."""
    shape = {**SHAPES, **EXTRA}[name]
    index = np.arange(math.prod(shape)) + sum(name.encode())
    values = ((index * 7919 % 31) - 15.5).astype(np.float32) / 64
    if pruned(name):
        # Places 0 and 2, 1 and 3, or 1 alone.
        group, place = np.divmod(np.arange(index.size), 4)
        values[~((place % 2 == group % 2) & ((group % 5 != 3) | (place == 1)))] = 0
    return values.reshape(shape)
