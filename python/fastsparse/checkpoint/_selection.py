"""The default selection: what is no weight, or cannot be ranked alone, told by name, shape and neighbours.

`TABLE` says which names are no weights, and why; `Layers` finds the layers that are quantised by their keys. Names are
those that PyTorch, transformers, diffusers, timm, torchaudio and the original releases of models give their tensors.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from fastsparse.patterns import NM, Nonzero, Pattern, Threshold, TopK, Unstructured

__all__ = ["TABLE", "UNKNOWN", "Kind", "Layers", "is_named", "not_a_weight", "quantisation_method"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    r"""A kind of tensor that is no weight. It has the name that one of the expressions describes, and the form.

    The parts of a name are put together with dots: of ``model.layers.0.mlp.up_proj.weight`` the leaf is ``weight``, the
    module that owns it ``up_proj``. Each expression describes whole parts; ``a\.b`` describes two in a row.

    Parameters
    ----------
    reason : str
        What it is, as the report says it.
    leaf : str
        The last part, of parameters and buffers that a module holds directly.
    owner : str
        The module whose ``weight`` it is.
    top : str
        The same for modules of the model itself: ``output.weight`` is its head, ``attention.output.weight`` is not.
    inside : str
        A module that it lies in, at any depth.
    form : str
        ``"any"``, ``"table"`` for two dimensions, ``"wide"`` for two of which the first is not the longer, ``"taps"``
        for convolutions along one dimension with one channel each and at most four taps, in the order of torch or MLX.
    """

    reason: str
    leaf: str = ""
    owner: str = ""
    top: str = ""
    inside: str = ""
    form: Literal["any", "table", "wide", "taps"] = "any"

    @cached_property
    def _name(self) -> re.Pattern[str]:
        forms = (
            (self.leaf, r"(?:^|\.)(?:{})(?:\.\d+)*$"),
            (self.owner, r"(?:^|\.)(?:{})(?:$|\.(?:weight|kernel|weights\.\d+)$)"),
            (self.top, r"^(?:(?:module|model|transformer|language_model)\.)*(?:{})\.(?:weight|kernel)$"),
            (self.inside, r"(?:^|\.)(?:{})\."),
        )
        return re.compile("|".join(form.format(parts) for parts, form in forms if parts), re.ASCII)

    def matches(self, name: str, shape: Shape) -> bool:
        """Whether a tensor is of this kind; the parts of its name are put together with dots."""
        fits = (
            self.form == "any"
            or (self.form == "table" and len(shape) == 2)
            or (self.form == "wide" and len(shape) == 2 and shape[0] <= shape[1])
            or (self.form == "taps" and len(shape) == 3 and min(shape[1:]) == 1 and max(shape[1:]) <= 4)
        )
        return fits and self._name.search(name) is not None


_POSITIONS = (
    r"(?!\w*_(proj|linear))(?:(\w+_)?pos(ition(al|s)?)?_?(emb\w*|enc\w*|bias\w*|table\w*)(_\w+)?"
    r"|\w*embed_positions\w*|wpe"
    r"|(\w*_)?pe(_\w)?|\w*rel(ative)?_?pos\w*|\w*relative\w*bias\w*|\w*distance_embeddings?"
    r"|(\w+_)?(row|col(umn)?|[xyhw]|temporal|freq|time|segment)_(pos\w*_)?embed(ding)?s?|(row|column)_embedder)"
)

_ROUTER = "a router of experts"
_NORMALISATION = "a normalisation"

TABLE = (
    Kind(
        "part of a computed weight, make that permanent first",
        leaf=r"weight_[gvu]|\w*weight_(orig|mask)",
        inside=r"parametrizations",
    ),
    Kind(
        "a factor of a low-rank adapter",
        leaf=r"(\w+_)?lora_\w+|(hada|lokr|oft|ia3)_\w+|dora_scale",
        owner=r"lora_\w+|(\w+[._])?lora(_\w+)?\.\w+",
        inside=r"lora_\w+",
    ),
    Kind("a position table", leaf=_POSITIONS + r"|emb_rel_\w|rpb|rel_(height|width)|W_pos", owner=_POSITIONS),
    Kind(
        "a fixed basis of a signal transform",
        leaf=r"(forward|inverse|mel|dct|cqt|i?stft|fourier)_(basis|mat\w*|filters?|kernel\w*|conv|bank)(_\w+)?"
        r"|(mel_)?fb(anks?)?|mel_?[wW]|resample[rs]?\.kernel|(\w+_)?(window|basis|filter_?bank)s?(_\w+)?|filters?",
        owner=r"(\w+_)?i?stft(_conv\w*)?|(\w+_)?dct|(mel|fourier)_(filters?|basis)",
        inside=r"(\w+_)?i?stft(_conv\w*|_transform|_basis)?|i?dct|mfcc|(log_?mel_?|mel_?)?spectrogram(_extractor)?"
        r"|log_?mel(_extractor)?|mel_?scale",
    ),
    Kind(
        "a rotary table",
        leaf=r"(\w+_)?inv_freq|(\w+_)?freqs?(_\w+)?|(\w+_)?(cos|sin)(_\w+)?",
        inside=r"(\w+_)?(rotary|rope)(_emb\w*|_pos\w*)?",
    ),
    Kind("an attention mask", leaf=r"(\w+_)?masks?(_cache)?|(\w+_)?masked_bias|tril|triu|attn\.bias|attention\.bias"),
    Kind(
        "a codebook",
        leaf=r"(\w+_)?codebooks?(_\w+)?|code_?vectors|embed_(avg|sum|prob)|cluster_\w+|codebook\.embed",
        owner=r"(\w+_)?codebooks?(_\w+)?|codebook\.\w+|(\w+_)?centroids",
    ),
    Kind(
        "an embedding",
        leaf=r"(\w+_)?emb(ed(ding)?s?)?(_concat)?|W_E",
        owner=r"(?!\w*patch_|vision_|decoder_embed|predictor_|\w*linear_)(?:wte"
        r"|(\w*_)?emb(ed(ding)?s?)?(_tables?|_layer)?(_?\d+)?"
        r"|\w*emb(ed)?_(\w+_)?tokens\w*(\.\d+)?|\w*embeddings(\.\d+)?|\w*embeds_layers\.\d+|shared"
        r"|(tok|token|word|vocab)_emb\w*|embed_(in|char|timestep|global)|emb_(in|tok\w*)|word_emb\.emb_layers\.\d+"
        r"|\w*[a-z]Embeddings?|\w+Embedder_\d+|queries_embedder|(atom|edge|edge_dis|in_degree|out_degree)_encoder)"
        r"|transformer\.w",
        form="table",
    ),
    Kind(
        _ROUTER,
        leaf=r"(\w+_)?router(_\w+)?",
        owner=r"(\w*expert\w*|moe|mlp)_gate|gating|routing|wg|gate_network(\.\d+)?",
        inside=r"(\w+_)?router(_\w+)?",
    ),
    Kind(
        _ROUTER,
        owner=r"(?!(\w*_)?(attn?|attention|\w_mixer|time_mix\w*|gateway)\.)\w+(\.\d+)?\.gate(\.\w+)?",
        form="wide",
    ),
    Kind(
        "an output layer",
        leaf=r"lm_head|W_U",
        owner=r"(?![qkvo]_|attn_)(\w+_)?heads?|(\w+_)?(lm|vocab|codec)_heads(\.\d+)?|embed_out|output_projection"
        r"|vocab_proj\w*|lm_loss|scores?"
        r"|\w*classifier|\w*logits\w*|qa_outputs|seq_relationship|cls_predictor|\w*(predictions?|lm_head|head)\.decoder"
        r"|lm_head\.(linear|\d+)|(\w*classif\w+|\w*head)\.out_proj|heads?\.(head|fc)|unembed(ding)?"
        r"|pred_layer\.proj|crit\.out_layers\.\d+",
        top=r"output|output_layer|proj_out|decoder",
    ),
    Kind("a short convolution, as state-space layers have", leaf=r".*", form="taps"),
    Kind(
        "a constant of a state-space layer",
        leaf=r"A_log\w*|\w+\.[ABCD]s?|[ABC]_(re|im|real|imag)|\w*dt_(bias|proj_bias)"
        r"|(\w+_)?(ssm|conv|initial)_states?|log_(dt|A)\w*|recurrent_param|ema_\w+|kernel_projection_matrix",
    ),
    Kind(
        "a time mixing parameter",
        leaf=r"time_\w+|(attn?|ffn|time_mix\w*|channel_mix\w*|attention)\.(x_\w+|[rka]_[kra]|mu_\w+)"
        r"|att\.[wavgk][012]|bonus",
    ),
    Kind(
        "a scale, shift or gate of activations",
        leaf=r"(\w+_)?(scale_shift|shift_scale)_\w+|(\w+_)?mod(ulation)?(_\w+)?|layer_?scale\w*|(\w+_)?shift"
        r"|ls_?\d?|gammas?(_\w+)?|betas?(_\w+)?|[Ll]ambdas?(_?\w+)?|alphas?(_\w+)?|layer_weights"
        r"|(\w+_)?gate_(msa|mlp|ffn|attn)",
    ),
    Kind(
        "a scale or zero point",
        leaf=r"(\w+_)?scales?(_\w+)?|w?[a-z]*scales|(\w+_)?q?zeros?(_points?)?"
        r"|(nested_)?(absmax|quant_map)|SCB|Wscale|S[UV]|su?[hv]h?",
    ),
    Kind(
        "a learned token or query",
        leaf=r"(\w+_)?tokens?(_\w+)?|(\w+_)?latents?(_\w+)?|(learned_|object_)?quer(y|ies)(_\w+)?|probe"
        r"|(\w+_)?prompts?(_\w+)?"
        r"|(\w+_)?newline|sinks?|registers?|dummy_node|bias_[kv]",
        owner=r"(?!to_)(\w+_)?tokens?|(\w+_)?(learned|object|mask|label|level|latent)_quer(y|ies)|quer(y"
        r"|ies)_(features|embed)"
        r"|(\w+_)?registers",
    ),
    Kind(
        _NORMALISATION,
        owner=r"(\w+_)?(layer|batch|group|rms|instance)?_?norm(_?\d+|_(added_)?[qkv]|_context)?|ln(_\w+)?|\w*Norm\d*",
    ),
    Kind("a statistic", leaf=r"running_(mean|var)|(\w+_)?(mean|std|variance)"),
    Kind("a bias", leaf=r"(\w+_)?bias(es)?(_\w+)?|\w+\.b\d*"),
)
"""Kinds of tensors that are no weights. The first that matches gives the reason."""

UNKNOWN = "not named like a weight"
"""The reason for what is of none of the kinds."""

_WEIGHT = re.compile(
    r"(?:^|\.)(?:(?:\w+_)?(?:weights?|kernel|[wW]([qkvio]+|\d*|_\w+)|proj|projs|projection|matrix|fc\d*"
    r"|linear\d*|dense)"
    r"(?:_(?:ih|hh|hr)_l\d+(?:_reverse)?|_(?:ih|hh))?|rel_attn\.[qkvor])(?:\.\d+)*$"
    r"|(?:^|\.)\w*experts?\w*(?:\.\w+)*\.\w+$|^[^.]*$",
    re.ASCII,
)
"""How weights are named: like ``weight``, ``kernel``, ``w1``, ``in_proj_weight``, ``gate_up_proj``; recurrent layers'
``weight_hh_l0``; whatever experts hold; and names without dots, which say nothing about a module."""


_NUMBER = re.compile(r"\.\d+(?=\.)", re.ASCII)


def _with_dots(name: str) -> str:
    """The name as modules would write it: JAX separates by slashes, and Keras numbers its outputs."""
    return name.removesuffix(":0").replace("/", ".")


def not_a_weight(name: str, shape: Shape) -> str | None:
    """Why a tensor of this name and shape is no weight; None where it is one."""
    return _reason(_NUMBER.sub(".0", _with_dots(name)), shape)


@lru_cache(maxsize=65536)
def _reason(dotted: str, shape: Shape) -> str | None:
    """The same for a name in which every member of a list is the first: layers and experts ask once."""
    for kind in TABLE:
        if kind.matches(dotted, shape):
            return kind.reason
    return None if _WEIGHT.search(dotted) else UNKNOWN


def is_named(name: str, expression: str, reason: str) -> bool:
    """Whether an expression names a tensor that is no weight, and does not only meet it on the way to a weight.

    ``attn`` and ``layers.0`` are found in ``layers.0.attn.bias``, but in ``layers.0.attn.weight`` as well; whoever
    writes them means weights. ``attn.bias`` is not found there, and means the mask. In the same way ``attn.weight``
    stands for ``attn.norm.weight``, for routers, and for parts of quantised tensors. `reason` is that of the tensor.
    """
    if re.search(expression, name) is None:
        return False
    module, _, leaf = name.rpartition(".")
    if leaf == "weight":
        if reason not in (_ROUTER, _NORMALISATION) and not reason.startswith(_PART):
            return True
        module = module.rpartition(".")[0]
    weight = module if module.endswith("weight") else f"{module}.weight" if module else "weight"
    return re.search(expression, weight) is None


_PART = "part of the quantised tensor"
_STORED = (
    "I8",
    "U8",
    "I16",
    "U16",
    "I32",
    "U32",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
)
"""Dtypes that weights are quantised to, whole or several in one element."""
_SCALED = ("I8", "F8_E4M3", "F8_E5M2")
"""Those among them whose elements are one weight each, but for a scale; zero is zero if there is no zero point."""
_NO_DATA = re.compile(r"mask|bias|ids?$|index|scale|zero", re.ASCII)
_SAYS_NOTHING = re.compile(
    r"(^|_)bias(_|$)|^(input|output|act\w*|[qkv])_|_input|_format$|_shape$|^num_batches", re.ASCII
)
"""Leaves beside a weight that do not change what its elements mean."""


class Layers:
    """The quantised layers of a checkpoint, told by the keys that a module has, and by what the config says.

    Parameters
    ----------
    tensors : mapping
        From names to dtypes, as safetensors names them, and shapes.
    method : str, optional
        The method by which the config says that the model is quantised, if it does.
    """

    def __init__(self, tensors: Mapping[str, tuple[str, Shape]], method: str | None = None) -> None:
        self._tensors, self._method = tensors, method
        self._leaves: dict[str, list[str]] = {}
        for name in tensors:
            module, dot, leaf = name.rpartition(".")
            if dot:
                self._leaves.setdefault(module, []).append(leaf)
        self._data = {module: dict.fromkeys(self._data_of(module)) for module in self._leaves}
        self._rest = {
            module: [leaf for leaf in self._leaves[module] if leaf not in found] for module, found in self._data.items()
        }

    def _data_of(self, module: str) -> Iterator[str]:
        """The leaves of a module that look like quantised weights."""
        for leaf in self._leaves[module]:
            dtype, shape = self._tensors[f"{module}.{leaf}"]
            if dtype in _STORED and len(shape) > 1 and not _NO_DATA.search(leaf):
                yield leaf

    def part(self, name: str) -> str | None:
        """Why a tensor belongs to the quantised weights of a layer, without being those; None where it does not."""
        module, _, leaf = name.rpartition(".")
        if self._tensors.get(module, ("",))[0] in _STORED:  # bitsandbytes has `weight.absmax` beside `weight`
            return f"{_PART} {module!r}"
        if leaf == "weight":  # VPTQ has `centroids.weight` beside `indices`
            module, _, leaf = module.rpartition(".")
        data = next((found for found in self._data.get(module, ()) if found != leaf), None)
        if data is None or "bias" in leaf.split("_") or not_a_weight(name, self._tensors[name][1]) is None:
            return None
        return f"{_PART} {module + '.' + data!r}"

    def unsound(self, name: str, pattern: Pattern, competes: bool) -> str | None:
        """Why the weights of a tensor cannot be ranked by what is stored; None where they can."""
        module, _, leaf = name.rpartition(".")
        dtype, shape = self._tensors[name]
        if dtype not in _STORED or leaf not in self._data.get(module, ()) or isinstance(pattern, Nonzero):
            return None
        own = self._beside(name)
        scales = [other for other in own if "scale" in other.rpartition(".")[2] or other.endswith(".SCB")]
        if not own and self._method is None:
            return None
        if dtype not in _SCALED or not scales or len(own) > len(scales):
            why = f"by {self._method}" if self._method else f"with {own[0]!r}"
            return f"quantised {why}: what is stored are not its weights"
        sizes = {other: math.prod(self._tensors[other][1]) for other in scales}
        scale = max(sizes, key=sizes.__getitem__)
        if competes:
            return f"quantised: it competes only together with its scale {scale!r}"
        rows = math.prod(shape[:-1])
        if isinstance(pattern, Threshold) or not (
            sizes[scale] == 1 or (sizes[scale] == rows and _in_rows(pattern, shape))
        ):
            return f"quantised: its weights rank only together with their scales {scale!r}"
        return None

    def _beside(self, name: str) -> list[str]:
        """The tensors that say what the stored elements of another mean: its scales, above all."""
        module, _, leaf = name.rpartition(".")
        data, stem = self._data[module], leaf.partition("_blocks")[0]
        beside = [f"{module}.{other}" for other in self._rest[module]]
        if len(data) > 1:  # several weights in one module, as experts have
            beside = [other for other in beside if other.startswith(f"{module}.{stem}")]
        beside += [f"{name}.{other}" for other in self._leaves.get(name, ())]
        return [other for other in beside if not _SAYS_NOTHING.search(other.rpartition(".")[2])]


def _in_rows(pattern: Pattern, shape: Shape) -> bool:
    """Whether only weights compete that lie in one row, along the last axis."""
    if isinstance(pattern, NM | TopK):
        return pattern.axis in (-1, len(shape) - 1)
    return isinstance(pattern, Unstructured) and pattern.per == "row" and len(shape) == 2


def quantisation_method(config: Mapping[str, Any] | None) -> str | None:
    """The method by which a model's `config.json` says that its weights are quantised, if it does."""
    for outer in (config or {}, (config or {}).get("text_config")):
        if not isinstance(outer, dict):
            continue
        if isinstance(outer.get("quantization"), dict):
            return "MLX"
        for key in ("quantization_config", "compression_config"):
            section = outer.get(key)
            if not isinstance(section, dict):
                continue
            method = str(section.get("quant_method", "compressed-tensors"))
            if method == "fastsparse":
                continue
            if method != "compressed-tensors" or section.get("config_groups"):
                return method
            if section.get("format") not in (None, "dense"):
                return method
    return None
