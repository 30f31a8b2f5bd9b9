"""`pytest benches --benchmark-only`: every case at 1024 × 4096, ours beside the peers, each result checked.

For a look while working on a kernel. Sides are not interleaved here; what counts is measured by report.py.
"""

from typing import Any

import pytest
from cases import Case, cases

CASES = dict(cases((1024, 4096)))


@pytest.mark.parametrize("name", CASES)
def test_ours(benchmark: Any, name: str) -> None:
    case = CASES[name]()
    benchmark.group = case.name
    assert benchmark(case.ours) is not None


@pytest.mark.parametrize("name", CASES)
def test_peer(benchmark: Any, name: str) -> None:
    """The first of the peers is timed, all are checked."""
    case: Case = CASES[name]()
    if not case.peers:
        pytest.skip("no peer that is installed does this")
    ours = case.ours()
    for peer in case.peers:
        peer.check(ours, peer.run())
    benchmark.group = case.name
    benchmark.extra_info["peer"] = case.peers[0].name
    benchmark.pedantic(case.peers[0].run, rounds=2)
