"""The one fixture that everything that computes runs under: each backend, each instruction set."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices are small here, and threads that wait for others spin

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from fastsparse import _backend, _numpy

try:
    from fastsparse import _core
except ImportError:
    # Without the native module half of this suite is missing: only a deliberate
    # FASTSPARSE_BACKEND=numpy may do that.
    if os.environ.get("FASTSPARSE_BACKEND") != "numpy":
        raise
    BACKENDS = [(_numpy, "numpy")]
else:
    BACKENDS = [(_numpy, "numpy"), *((_core, isa) for isa in _core.available_isas())]

# The fixture stays the same while hypothesis varies its examples, which is what the suppressed
# check warns of.
settings.register_profile(
    "fastsparse",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastsparse")

# What a shell starts in the background ignores Ctrl-C; here it is raised.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=BACKENDS, ids=[isa for _, isa in BACKENDS])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Switches to a backend and an instruction set; its value is the name of the latter."""
    module, isa = request.param
    before = module.get_isa()
    monkeypatch.setattr(_backend, "active", module)
    module.set_isa(isa)
    yield isa
    module.set_isa(before)
    module.set_num_threads(None)
