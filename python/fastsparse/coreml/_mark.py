"""Dense models whose weights have zeros, marked so that they convert sparse."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["mark_sparse"]

_BUFFER = "_COREML_/weight/compression_type"
"""Where coremltools looks for what was done to the weight of a module."""
_PRUNING = 1


@contextmanager
def mark_sparse(model: Any) -> Iterator[list[str]]:
    """Within this context a traced or exported model says which of its dense weights are pruned.

    `coremltools.convert` then stores them as `constexpr_sparse_to_dense`, for iOS 16 and later: all that is not zero,
    bit for bit. The marks are buffers that coremltools reads; they stay in what is traced or exported here, and the
    model loses them again. A weight is marked if it becomes smaller: ``weight`` of at least two dimensions in a linear
    layer, a convolution or any other module. Packed layers need no mark.

    Parameters
    ----------
    model : torch.nn.Module
        Pruned by `fastsparse.torch.prune`, `prune_model`, or anything else that makes zeros.

    Yields
    ------
    list of str
        The names of the weights that are marked.

    Examples
    --------
    >>> import torch                                                              # doctest: +SKIP
    >>> with coreml.mark_sparse(model) as names:                                  # doctest: +SKIP
    ...     program = torch.export.export(model, (x,)).run_decompositions({})
    >>> ct.convert(program, minimum_deployment_target=ct.target.iOS16)            # doctest: +SKIP
    """
    import torch  # optional, and slow to import

    marked = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2 or not weight.is_floating_point() or _BUFFER in module._buffers:
            continue
        size, bits = math.prod(weight.shape), 8 * weight.element_size()
        if int(torch.count_nonzero(weight)) * bits + size < size * bits:
            marked[f"{path}.weight".lstrip(".")] = module
    try:
        for module in marked.values():
            module.register_buffer(_BUFFER, torch.tensor([_PRUNING]))
        yield list(marked)
    finally:
        for module in marked.values():
            module._buffers.pop(_BUFFER, None)
