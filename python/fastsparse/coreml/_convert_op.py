"""What `coremltools.convert` makes of packed layers. Importing it imports coremltools and torch.

Traced and exported models hold the operator `fastsparse::linear` where a packed layer is, and `fastsparse::to_dense`
where code computes with its dense weight. The weight becomes `constexpr_sparse_to_dense`, with the mask and the kept
values of the layer. Weights of eight bits go through `constexpr_sparse_blockwise_shift_scale` first.

Dense weights that are marked as sparse by coremltools' own buffers get all that is not zero, too: by itself coremltools
takes magnitudes up to 2⁻¹⁰ for zeros.
"""

from typing import Any

import numpy as np
from coremltools import _logger, target
from coremltools.converters.mil.frontend.torch.converter import TorchConverter
from coremltools.converters.mil.frontend.torch.ops import _create_linear_layer, _get_inputs
from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with
from coremltools.converters.mil.mil.ops.defs._utils import promote_input_dtypes

from fastsparse._errors import FastSparseError
from fastsparse.coreml._params import to_sparse_params
from fastsparse.ops import pack
from fastsparse.packed import BitmaskArray
from fastsparse.quantized import BITS, QuantizedArray

__all__: list[str] = []


@register_torch_op(torch_alias=["fastsparse::linear", "fastsparse.linear"], override=True)  # type: ignore[untyped-decorator]
def fastsparse_linear(context: Any, node: Any) -> None:
    """``x @ weight.T + bias`` with a packed weight."""
    x, values, bitmask, _, cols, bias, *scale = _get_inputs(context, node, expected=[6, 7])
    weight = _weight(node.name, values, bitmask, cols, *scale)
    x, weight, *more = promote_input_dtypes([x, weight] if bias is None else [x, weight, bias])
    result = _create_linear_layer(x, weight, more[0] if more else None)
    result.name = node.name
    context.add(result, torch_name=node.name)


@register_torch_op(torch_alias=["fastsparse::to_dense", "fastsparse.to_dense"], override=True)  # type: ignore[untyped-decorator]
def fastsparse_to_dense(context: Any, node: Any) -> None:
    """The dense weight itself."""
    values, bitmask, _, cols, *more = _get_inputs(context, node, expected=[4, 5, 6])
    weight = _weight(node.name, values, bitmask, cols, *more[:1])
    weight.name = node.name
    context.add(weight, torch_name=node.name)


def _weight(layer: str, values: Any, bitmask: Any, cols: Any, scale: Any = None) -> Any:
    """A packed weight as a variable of the program."""
    for name, part in (("values", values), ("bitmask", bitmask)):
        if part.val is None:
            raise FastSparseError(f"layer {layer!r}: its {name} are computed by the model, they have to be constants")
    if not is_current_opset_version_compatible_with(target.iOS16):
        hint = "pass minimum_deployment_target=coremltools.target.iOS16 or later"
        raise FastSparseError(f"layer {layer!r}: packed weights are for iOS 16 and later; {hint}")
    bits = np.asarray(bitmask.val).astype(np.uint8)
    s = BitmaskArray.from_parts(np.asarray(values.val), bits, (bits.shape[0], int(cols.val)))
    if scale is None:
        return _constexpr(s, f"{layer}_weight")
    if not is_current_opset_version_compatible_with(target.iOS18):
        _logger.warning(f"layer {layer!r}: sparse weights of {BITS} bits are for iOS 18; stored as float16 or float32")
        return _constexpr(QuantizedArray.from_parts(s, scale.val, np.float32).dequantize(), f"{layer}_weight")
    params = to_sparse_params(s, ios=18)
    mask, data = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=params.mask,
        nonzero_data=params.nonzero_data,
        scale=scale.val[:, None],
        name=f"{layer}_weight_quantized",
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, name=f"{layer}_weight")


def _constexpr(s: BitmaskArray, name: str) -> Any:
    """A packed tensor in the form that the program's version has."""
    if is_current_opset_version_compatible_with(target.iOS18):
        params = to_sparse_params(s, ios=18)
        return mb.constexpr_sparse_to_dense(nonzero_data=params.nonzero_data, mask=params.mask, name=name)
    flat = to_sparse_params(s)
    return mb.constexpr_sparse_to_dense(
        nonzero_data=flat.nonzero_data, mask=flat.mask, shape=np.uint32(flat.shape), name=name
    )


def _marked(weight: Any, compression_info: Any, name: str, compressed_var: Any = None) -> Any:
    return _constexpr(pack(weight), name)


TorchConverter._construct_sparsification_op = staticmethod(_marked)
