"""Looking at weights: what many patterns would keep of them, and which patterns their zeros obey already."""

from fastsparse.analysis._detect import detect
from fastsparse.analysis._sweep import Sweep, SweepRow, sweep

__all__ = ["Sweep", "SweepRow", "detect", "sweep"]
