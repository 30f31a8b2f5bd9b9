"""Kernels on the threads of torch: the same results, whatever the number of threads, the callers and the forks."""

import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import fastsparse as fs
import fastsparse.torch as fst
from fastsparse import _backend
from fastsparse.torch._threads import adopt_threads

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SKIPPED: own threads on this system")


@pytest.fixture
def layer():
    torch.manual_seed(0)
    dense = torch.nn.Linear(1024, 3000)
    return fst.SparseLinear.from_linear(dense, "50%")


@pytest.fixture
def x():
    return torch.randn(3, 1024)


def product(layer, x):
    with torch.inference_mode():
        return layer(x)


def test_the_team_is_torchs(capsys):
    assert adopt_threads()
    fs.show_runtime()
    assert "on the OpenMP team of torch" in capsys.readouterr().out


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(layer, x, threads):
    expected = product(layer, x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(product(layer, x), expected)
        w = np.random.default_rng(0).normal(size=(512, 4096)).astype(np.float32)
        assert np.count_nonzero(fs.prune(w, "50%")) == w.size // 2
    finally:
        torch.set_num_threads(before)


def test_callers_at_once(layer, x):
    expected = product(layer, x)
    found = [None] * 8

    def call(i):
        for _ in range(20):
            found[i] = product(layer, x)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(result, expected) for result in found)


def in_a_child(queue, w):
    queue.put((_backend.active.uses_openmp(), np.count_nonzero(fs.prune(w, "50%"))))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(layer, x):
    product(layer, x)
    w = np.random.default_rng(0).normal(size=(1024, 4096)).astype(np.float32)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=in_a_child, args=(queue, w))
    child.start()
    assert queue.get(timeout=60) == (False, w.size // 2)
    child.join(60)
    assert child.exitcode == 0
    assert _backend.active.uses_openmp()


def test_numpy_alone_keeps_the_pool():
    code = "import fastsparse as fs; fs.show_runtime(); print(fs._backend.active.uses_openmp())"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.endswith("False\n")
    assert "OpenMP" not in out
