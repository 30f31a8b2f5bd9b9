"""Checkpoints: safetensors files and model folders whose tensors are pruned and packed without holding the whole.

How to use them is described in `docs/checkpoints.md`, the file format in `docs/format.md`. This module needs the native
module, whichever backend computes.
"""

from fastsparse.checkpoint._compress import compress, decompress
from fastsparse.checkpoint._inspect import inspect
from fastsparse.checkpoint._job import Job
from fastsparse.checkpoint._plan import Plan, plan
from fastsparse.checkpoint._progress import Progress
from fastsparse.checkpoint._reader import Checkpoint, open
from fastsparse.checkpoint._recipe import Recipe, Rule
from fastsparse.checkpoint._report import Report, TensorInfo, TensorReport
from fastsparse.checkpoint._save import save
from fastsparse.checkpoint._sections import Allocation, Calibration, Method
from fastsparse.checkpoint._sweep import CheckpointSweep, TensorSweep, sweep
from fastsparse.checkpoint._verify import VerifyError, verify

__all__ = [
    "Allocation",
    "Calibration",
    "Checkpoint",
    "CheckpointSweep",
    "Job",
    "Method",
    "Plan",
    "Progress",
    "Recipe",
    "Report",
    "Rule",
    "TensorInfo",
    "TensorReport",
    "TensorSweep",
    "VerifyError",
    "compress",
    "decompress",
    "inspect",
    "open",
    "plan",
    "save",
    "sweep",
    "verify",
]
