"""Calibrated pruning: what a layer's inputs say about its weights decides which go, and mends those that stay.

Arrays only. `Gram` gathers what the methods need to know of the inputs, block by block of a data set. `wanda` ranks
weights by it, `sparsegpt` prunes column by column and lets the columns to come make up for each pruned weight, and
`refine` finds the best kept weights for a mask, whoever made it; `alps` seeks mask and weights together.
`layer_error` says how much of a layer's output was lost. `allocation` spreads one sparsity over layers that bear it
differently well. `load_statistics` opens what `fastsparse calibrate` stored of the inputs of a model's layers.

Examples
--------
>>> import numpy as np
>>> from fastsparse import calibration
>>> rng = np.random.default_rng(0)
>>> w = rng.standard_normal((64, 96), np.float32)
>>> x = rng.standard_normal((512, 24), np.float32) @ rng.standard_normal((24, 96), np.float32)
>>> gram = calibration.Gram(96)
>>> gram.update(x)
>>> mask = calibration.wanda(w, gram.norms, "50%")
>>> refined = calibration.refine(w, gram, mask)
>>> error = calibration.layer_error(w, w * mask.to_bool(), gram)
>>> calibration.layer_error(w, refined, gram) < error / 4
True
"""

from fastsparse.calibration import allocation
from fastsparse.calibration._alps import alps
from fastsparse.calibration._error import layer_error
from fastsparse.calibration._factor import Factor, factorize
from fastsparse.calibration._gram import Gram
from fastsparse.calibration._refine import refine
from fastsparse.calibration._sparsegpt import sparsegpt
from fastsparse.calibration._statistics import LayerStatistics, Statistics, load_statistics
from fastsparse.calibration._wanda import wanda

__all__ = [
    "Factor",
    "Gram",
    "LayerStatistics",
    "Statistics",
    "allocation",
    "alps",
    "factorize",
    "layer_error",
    "load_statistics",
    "refine",
    "sparsegpt",
    "wanda",
]
