"""Import, environment, threads, fork, and inputs that change under a call."""

import doctest
import inspect
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from conftest import BACKENDS
from strategies import weights

import fastsparse as fs
from fastsparse import _backend, _numpy

NATIVE = pytest.mark.skipif(len(BACKENDS) == 1, reason="the native module is not built")


def run(code, *flags, **environment):
    """Runs code in a fresh interpreter with none of the settings but these; returns what it says."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FASTSPARSE_")}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], env=inherited | environment, capture_output=True, text=True, timeout=120
    )


# Import


def test_exports_are_public_and_complete():
    public = {n for n in vars(fs) if not n.startswith("_") and not inspect.ismodule(vars(fs)[n])}
    assert public | set(fs._FROM_ANALYSIS) == set(fs.__all__)
    assert set(dir(fs)) == {*fs.__all__, *fs._SUBMODULES, "__version__"}


@pytest.mark.parametrize(
    ("name", "meant"), [("compres", "compress"), ("checkpoints", "checkpoint"), ("tensorflow", "")]
)
def test_near_names_are_suggested(name, meant):
    with pytest.raises(
        AttributeError, match=f"no attribute '{name}'" + (f".*did you mean '{meant}'" if meant else "$")
    ):
        getattr(fs, name)


def test_completion_shows_submodules_and_does_not_import_them():
    code = """
import rlcompleter, sys
import fastsparse as fs
complete = rlcompleter.Completer({"fs": fs}).complete
shown = [complete("fs.", at) for at in range(50)]
assert {"fs.torch", "fs.checkpoint", "fs.compress("} <= set(shown), shown
others = {f"fastsparse.{name}" for name in fs._SUBMODULES} - {"fastsparse.analysis"}  # it has functions of the package
assert not others & set(sys.modules), others & set(sys.modules)
assert fs.checkpoint is sys.modules["fastsparse.checkpoint"]
"""
    assert run(code).stderr == ""


def test_a_module_that_cannot_be_imported_is_a_missing_attribute(monkeypatch):
    """So that what looks at each attribute goes on to the next."""
    monkeypatch.setitem(sys.modules, "fastsparse.coreml", None)
    monkeypatch.delattr(fs, "coreml", raising=False)
    with pytest.raises(AttributeError, match="coreml cannot be imported"):
        fs.coreml  # noqa: B018


def test_signatures_can_be_read():
    modules = [fs, fs.checkpoint, fs.calibration, fs.compressed_tensors, fs.cutlass, fs.coreml]
    functions = [getattr(module, name) for module in modules for name in module.__all__]
    functions += [vars(fs.BitmaskArray)["from_parts"], fs.BitmaskArray.__matmul__, fs.Bitmask.from_bool]
    checked = 0
    for function in filter(inspect.isfunction, functions):
        assert "numpy." not in str(inspect.signature(function)), function
        checked += 1
    assert checked > 25


def test_modules_are_there_without_an_import():
    code = "import fastsparse as fs; fs.compressed_tensors.from_sparse24, fs.checkpoint.Recipe, fs.coreml.from_flat"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'"):
        fs.tensorflow  # noqa: B018


def test_every_public_name_is_documented_with_an_example():
    finder = doctest.DocTestFinder(recurse=False)
    for name in fs.__all__:
        thing = getattr(fs, name)
        assert inspect.getdoc(thing), name
        if name not in ("Pattern", "FastSparseError", "FormatError"):
            assert any(test.examples for test in finder.find(thing, name)), name
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if not member.startswith("_") and (callable(value) or isinstance(value, property | staticmethod)):
                assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"


def test_errors_are_value_errors():
    assert issubclass(fs.FastSparseError, ValueError)
    assert issubclass(fs.FormatError, fs.FastSparseError)


def test_version():
    assert fs.__version__.count(".") >= 2 or fs.__version__ == "0+unknown"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fs.nothing  # noqa: B018


def test_import_is_light():
    done = run(
        "import sys, numpy, ml_dtypes; before = set(sys.modules); import fastsparse; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before} - {'fastsparse'}))",
        FASTSPARSE_BACKEND="numpy",
    )
    heavy = {"scipy", "torch", "importlib", "decimal", "typer", "rich", "safetensors", "multiprocessing", "asyncio"}
    assert done.returncode == 0, done.stderr
    assert not heavy & set(done.stdout.split())


# Environment


SHOW = "import fastsparse; fastsparse.show_runtime()"


def test_backend_can_be_numpy():
    done = run(SHOW, "-W", "error", FASTSPARSE_BACKEND="numpy")
    assert done.returncode == 0, done.stderr
    assert "backend: numpy" in done.stdout


@NATIVE
def test_backend_is_native_by_default_and_on_demand():
    for environment in ({}, {"FASTSPARSE_BACKEND": "native"}):
        done = run(SHOW, "-W", "error", **environment)
        assert done.returncode == 0, done.stderr
        assert "backend: native" in done.stdout


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == "fastsparse._core":
            raise ModuleNotFoundError("No module named 'fastsparse._core'")
sys.meta_path.insert(0, Hide())
"""


def test_without_the_native_module_there_is_a_warning():
    done = run(HIDE + SHOW)
    assert done.returncode == 0, done.stderr
    assert "backend: numpy" in done.stdout
    assert "RuntimeWarning: the native module is missing" in done.stderr


def test_without_the_native_module_native_is_an_error():
    done = run(HIDE + SHOW, FASTSPARSE_BACKEND="native")
    assert done.returncode == 1
    assert "ImportError: FASTSPARSE_BACKEND=native, but the native module is missing" in done.stderr


@pytest.mark.parametrize("backend_name", ["numpy", pytest.param("native", marks=NATIVE)])
@pytest.mark.parametrize(
    ("variable", "value"),
    [("FASTSPARSE_NUM_THREADS", v) for v in ("0", "-1", "two", "1.5", "\udcff")]
    + [("FASTSPARSE_ISA", v) for v in ("sse2", "AVX2", "avx2\udcff")],
)
def test_environment_that_is_wrong(backend_name, variable, value):
    done = run(SHOW, FASTSPARSE_BACKEND=backend_name, **{variable: value})
    assert done.returncode == 1
    assert f"FastSparseError: {variable}: " in done.stderr
    assert value.rstrip("\udcff") in done.stderr.splitlines()[-1]


def test_backend_that_is_wrong():
    done = run(SHOW, FASTSPARSE_BACKEND="rust")
    assert done.returncode == 1
    assert "FASTSPARSE_BACKEND: expected native or numpy, got 'rust'" in done.stderr


@pytest.mark.parametrize("backend_name", ["numpy", pytest.param("native", marks=NATIVE)])
def test_threads_from_the_environment(backend_name):
    code = SHOW + "; fastsparse.set_num_threads(5); fastsparse.set_num_threads(None); fastsparse.show_runtime()"
    done = run(code, FASTSPARSE_BACKEND=backend_name, FASTSPARSE_NUM_THREADS="3")
    assert done.stdout.count("threads: 3\n") == 2, done.stderr


@NATIVE
def test_isa_from_the_environment_is_a_ceiling():
    for _, isa in BACKENDS[1:]:
        done = run(SHOW, FASTSPARSE_ISA=isa)
        assert f"ISA: {isa} (available: scalar" in done.stdout, done.stderr


@NATIVE
@pytest.mark.parametrize("name", ["amx", "avx512", "avx2", "neon"])
def test_isa_that_the_cpu_lacks(name):
    available = [isa for _, isa in BACKENDS[1:]]
    if name == "amx" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            has = {"amx_tile", "amx_int8", "amx_bf16"} <= set(file.read().split())
    else:
        has = name in available or (name == "neon" and platform.machine() in ("aarch64", "arm64"))
    done = run(SHOW, FASTSPARSE_ISA=name)
    if has:
        used = name if name in available else available[-1]  # no kernels of its own: the next lower
        assert f"ISA: {used} (" in done.stdout, done.stderr
    else:
        assert done.returncode == 1
        assert f'FastSparseError: FASTSPARSE_ISA: "{name}" cannot be used: this machine lacks it' in done.stderr


# Settings


def test_show_runtime(backend, capsys):
    fs.set_num_threads(3)
    assert fs.show_runtime() is None
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"fastsparse {fs.__version__}"
    assert shown[1].startswith(f"backend: {'numpy' if backend == 'numpy' else 'native'} (")
    assert shown[2].startswith(f"ISA: {backend} (available: ")
    assert shown[3] == "threads: 3"


def test_set_num_threads(backend):
    default = _backend.active.get_num_threads()
    assert default >= 1
    fs.set_num_threads(np.int64(4))
    assert _backend.active.get_num_threads() == 4
    for wrong in (0, -3, 1.5, "2", True):
        with pytest.raises(fs.FastSparseError, match="threads: expected an integer ≥ 1 or None, got "):
            fs.set_num_threads(wrong)
    assert _backend.active.get_num_threads() == 4
    fs.set_num_threads(None)
    assert _backend.active.get_num_threads() == default


def test_number_of_threads_of_the_process_does_not_change_the_result(backend):
    w = weights((601, 999), np.float32, 1)
    results = []
    for threads in (1, 2, 5):
        fs.set_num_threads(threads)
        s = fs.compress(w, "50%")
        results.append((s, fs.pack(w, s.mask), fs.apply_mask(w, s.mask).tobytes(), s.to_dense().tobytes()))
    assert results[0] == results[1] == results[2]


# Fork and threads


def child(connection):
    w = weights((701, 999), np.float32, 2)
    s = fs.compress(w, "50%", threads=2)
    connection.send((s, s.to_dense().sum()))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_compute_in_parallel(backend):
    w = weights((701, 999), np.float32, 2)
    wanted = fs.compress(w, "50%", threads=2)  # the pool exists before the fork
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(theirs,))
        process.start()
        theirs.close()
        try:
            assert mine.poll(60), "the child hangs"
            s, total = mine.recv()
        finally:
            process.kill()
            process.join()
        assert s == wanted
        assert total == wanted.to_dense().sum()
    assert fs.compress(w, "50%", threads=2) == wanted


def test_calls_from_many_threads(backend):
    tensors = [weights((300, 401 + i), np.float32, i) for i in range(4)]
    wanted = [fs.compress(w, "2:4") for w in tensors]
    found = [[] for _ in tensors]

    def work(i):
        for _ in range(5):
            found[i].append(fs.compress(tensors[i], "2:4", threads=2))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(tensors))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(s == wanted[i] for i, results in enumerate(found) for s in results)
    assert all(len(results) == 5 for results in found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_inputs_that_change_meanwhile(backend, dtype):
    """Nothing is promised about the result, but the call ends, in bounds, with one or with a `FastSparseError`."""
    w, noise = weights((300, 1001), dtype, 3), weights((300, 1001), dtype, 4, "wild")
    bits = fs.select(w, "50%").bits.copy()
    bits.flags.writeable = True
    s = fs.BitmaskArray.from_parts(w[fs.Bitmask.from_bits(bits, w.shape).to_bool()], bits, w.shape)
    stop = threading.Event()

    def disturb():
        rng = np.random.default_rng(5)
        while not stop.is_set():
            w[:] = noise if rng.random() < 0.5 else 0
            w[::7] = 1
            bits[:, :125] ^= rng.integers(0, 256, (300, 125), np.uint8)

    mask = fs.Bitmask.from_bits(bits, w.shape)
    patterns = ("50%", "90%/row", "2:4", "8:16", "50%/4x4", "threshold=0.5", "nonzero")
    calls = [partial(fs.compress, w, pattern, threads=2) for pattern in patterns]
    calls += [partial(fs.pack, w), partial(fs.pack, w, mask), partial(fs.apply_mask, w, mask), s.to_dense, mask.to_bool]
    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        for _ in range(4):
            for call in calls:
                try:
                    result = call()
                except fs.FastSparseError:
                    continue
                assert result.shape == w.shape
    finally:
        stop.set()
        disturber.join()


def test_numpy_backend_needs_no_native_module():
    assert _numpy.available_isas() == ["numpy"]
    assert BACKENDS[0][0] is _numpy
