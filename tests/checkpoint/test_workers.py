"""Executors of every kind give the same bytes; memory, and what failures leave."""

import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint
from fastsparse.checkpoint import _reader
from fastsparse.checkpoint._executor import Task, map_bounded

RECIPES = {
    "tensor": checkpoint.Recipe(default="2:4", rules=[checkpoint.Rule("0", "nonzero")]),
    "global": checkpoint.Recipe(default="60%", scope="global", max_sparsity=0.9),
}


@pytest.fixture
def src(tmp_path):
    rng = np.random.default_rng(9)
    kinds = [np.float32, np.float16, ml_dtypes.bfloat16]
    tensors = {f"{i}.weight": (rng.standard_normal((64, 80)) * i).astype(kinds[i % 3]) for i in range(9)}
    checkpoint.save({**tensors, "bias": np.arange(7)}, tmp_path / "src")
    return tmp_path / "src"


class Inline(Executor):
    """Does the work when it is submitted."""

    def submit(self, function, /, *arguments, **options):
        future = Future()
        future.set_result(function(*arguments, **options))
        return future


def threads():
    return ThreadPoolExecutor(3)


def spawned():
    return ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))


def forked():
    return ProcessPoolExecutor(2, multiprocessing.get_context("fork"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("make", [Inline, threads, spawned, forked])
def test_every_executor_gives_the_same_bytes(tmp_path, src, make):
    before = fs._backend.active.get_num_threads()
    told = []
    with make() as executor:
        for name, recipe in RECIPES.items():
            expected = checkpoint.compress(src, tmp_path / name, recipe)
            found = checkpoint.compress(
                src,
                tmp_path / "dst",
                recipe,
                executor=executor,
                overwrite=True,
                progress=lambda *tick: told.append(tick),
            )
            assert (tmp_path / "dst").read_bytes() == (tmp_path / name).read_bytes()
            assert found.tensors == expected.tensors
            assert told[-1][0] == told[-1][1] > 0
            assert checkpoint.plan(src, recipe, executor=executor).jobs == checkpoint.plan(src, recipe).jobs
    assert fs._backend.active.get_num_threads() == before


@pytest.mark.parametrize("make", [threads, spawned])
def test_an_error_of_a_worker_is_the_callers(tmp_path, src, make):
    w = np.ones((64, 64), np.float32)
    w[5, 6] = np.nan
    checkpoint.save({"a.weight": w, "b.weight": w}, tmp_path / "nan")
    with make() as executor, pytest.raises(fs.FastSparseError, match=r"'a.weight': .*NaN .*\(5, 6\)"):
        checkpoint.compress(tmp_path / "nan", tmp_path / "dst", "50%", executor=executor)
    assert sorted(os.listdir(tmp_path)) == ["nan", "src"]


def test_a_source_that_was_replaced_is_noticed(src):
    pickled = pickle.dumps(checkpoint.open(src))
    assert list(pickle.loads(pickled)) == list(checkpoint.open(src))
    _reader._reopen.cache_clear()
    checkpoint.save({"other": np.arange(3)}, src, overwrite=True)
    with pytest.raises(fs.FastSparseError, match="changed while it was read"):
        pickle.loads(pickled)


def test_no_more_is_under_way_than_fits():
    largest = 1 << 30
    begun = []
    tasks = [Task(begun.append, (at,), peak=largest * 3 // 2, held=largest // 2) for at in range(5)]
    seen = [len(begun) for _ in map_bounded(Inline(), tasks, largest)]
    assert seen == [2, 3, 4, 5, 5]
    begun.clear()
    tasks = [Task(begun.append, (at,), peak=largest * 3, held=largest * 3) for at in range(3)]
    assert [len(begun) for _ in map_bounded(Inline(), tasks, largest)] == [1, 2, 3]


MEMORY = """
import re, sys
from fastsparse import checkpoint
checkpoint.compress(sys.argv[1], sys.argv[2], sys.argv[3])
checkpoint.decompress(sys.argv[2], sys.argv[2] + "-dense")
checkpoint.verify(sys.argv[2], sys.argv[1])
# Not ru_maxrss: that of the process which started this one counts in it.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


def test_memory_is_that_of_two_tensors(tmp_path):
    rng = np.random.default_rng(0)
    block = rng.standard_normal((1024, 8192), dtype=np.float32)
    checkpoint.save({f"{i}.weight": block if i else np.tile(block, (4, 1)) for i in range(12)}, tmp_path / "src")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "src"), str(tmp_path / "dst"), "50%"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) <= 2 * 4 * block.nbytes + (256 << 20)


@pytest.fixture
def folder(tmp_path, src):
    """A model folder with a few times the tensors."""
    folder = tmp_path / "folder"
    folder.mkdir()
    tensors = checkpoint.open(src)
    checkpoint.save({f"{i}.{name}": w for i in range(5) for name, w in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def patterns(path, against):
    return {row.pattern for row in checkpoint.verify(path, against).tensors if row.reason is None}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_run_that_is_killed_leaves_the_old_or_the_new(tmp_path, folder, kind):
    source, dst = folder if kind == "folder" else folder / "model.safetensors", tmp_path / "dst"
    seconds = max(checkpoint.compress(source, dst, form, overwrite=True).seconds for form in ("50%", "2:4"))
    rng = np.random.default_rng(11)
    for _ in range(24):
        child = multiprocessing.get_context("fork").Process(
            target=checkpoint.compress, args=(source, dst, "50%"), kwargs={"overwrite": True}
        )
        child.start()
        time.sleep(rng.uniform(0, 1.2 * seconds))
        child.kill()
        child.join()
        assert patterns(dst, source) in ({"2:4"}, {"50%"})
    checkpoint.compress(source, dst, "50%", overwrite=True)
    assert patterns(dst, source) == {"50%"}
    assert sorted(os.listdir(tmp_path)) == ["dst", "folder", "src"]


COMPRESS = """
import signal
import sys
from fastsparse.cli import _commands, main
def run(arguments, run=_commands.run):
    print("started", flush=True)  # within what main takes an interrupt in
    return run(arguments)
_commands.run = run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background hands it down as ignored
sys.exit(main(["compress", sys.argv[1], sys.argv[2], "--pattern", "50%"]))
"""


def start(src, dst, **options):
    command = [sys.executable, "-c", COMPRESS, str(src), str(dst)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    assert process.stdout.readline() == "started\n"
    return process


def test_an_interrupted_run_cleans_up(tmp_path, folder):
    dst = tmp_path / "dst"
    for delay in (0, 0.005, 0.01, 0.02, 0.05):
        process = start(folder, dst)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()
        # It may have been done already, and the signal have met the interpreter on its way out.
        if dst.exists():
            assert patterns(dst, folder) == {"50%"}
            break
        assert process.returncode == 130, messages
        assert [line for line in messages.splitlines() if "left" not in line] == [
            "fastsparse: interrupted; what was begun is removed"
        ]
        assert sorted(os.listdir(tmp_path)) == ["folder", "src"]
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, src, folder):
    resource = pytest.importorskip("resource", reason="a Unix module")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    for source in (src, folder):
        process = start(source, tmp_path / "dst", preexec_fn=limit)
        _, messages = process.communicate()
        assert process.returncode == 1
        assert re.search(
            r"^fastsparse: \[Errno 27\] File too large: .*; .* name another target$", messages, re.MULTILINE
        )
        assert sorted(os.listdir(tmp_path)) == ["folder", "src"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("room", [0, 40, 100, 150])
def test_a_disk_without_room_is_as_it_was(small_disk, folder, room):
    """Full from the start, in the middle of the shards, and when what is left is too little for the second model."""
    (folder / "tokenizer.json").write_bytes(bytes(80_000))
    old = small_disk / "dst"
    old.mkdir()
    (old / "ballast").write_bytes(bytes(1000 * (190 - room)))
    checkpoint.save({"a": np.arange(3)}, old / "model.safetensors")
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    process = subprocess.run(
        [sys.executable, "-m", "fastsparse", "compress", folder, old, "--pattern", "50%", "--overwrite"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert re.search(r"^fastsparse: \[Errno 28\] No space left .*; make room and run it again", process.stderr, re.M)
    assert "Traceback" not in process.stderr
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert os.listdir(small_disk) == ["dst"]


def as_nobody():
    """Root may write everywhere; nobody may not."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is Unix's")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_target_that_cannot_be_written_is_an_error(src, folder):
    with (
        TemporaryDirectory() as place,
        ProcessPoolExecutor(1, multiprocessing.get_context("fork"), initializer=as_nobody) as nobody,
    ):
        for source in (src, folder):
            here = shutil.copytree if source.is_dir() else shutil.copy
            here(source, os.path.join(place, source.name))
        os.mkdir(os.path.join(place, "locked"))
        os.chmod(os.path.join(place, "locked"), 0o555)
        os.chmod(place, 0o755)
        for source in ("src", "folder"):
            run = nobody.submit(checkpoint.compress, f"{place}/{source}", f"{place}/locked/dst", "50%")
            with pytest.raises(PermissionError, match=r"locked/dst"):
                run.result()
        assert os.listdir(f"{place}/locked") == []


def test_a_target_below_a_file_is_an_error(tmp_path, src, folder):
    before = sorted(os.listdir(tmp_path))
    for source in (src, folder):
        with pytest.raises(NotADirectoryError, match="dst"):
            checkpoint.compress(source, src / "dst", "50%")
    assert sorted(os.listdir(tmp_path)) == before


def short_lived():
    """A process for each task: each opens the source anew."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)


@pytest.mark.parametrize("make", [None, threads, short_lived])
def test_a_source_that_vanishes(tmp_path, src, make):
    """Who has it mapped goes on with it, who has yet to open it says so; the target is complete or not there."""
    with pytest.raises(FileNotFoundError, match="none"):
        checkpoint.compress(tmp_path / "none", tmp_path / "dst", "50%")
    checkpoint.compress(src, tmp_path / "expected", "50%")
    names = []

    def vanish(done, total, name):
        names.append(name)
        if len(names) == 1:
            src.unlink()

    with nullcontext() if make is None else make() as executor:
        if make is short_lived:
            with pytest.raises(FileNotFoundError, match="src"):
                checkpoint.compress(src, tmp_path / "dst", "50%", executor=executor, progress=vanish)
            assert sorted(os.listdir(tmp_path)) == ["expected"]
        else:
            checkpoint.compress(src, tmp_path / "dst", "50%", executor=executor, progress=vanish)
            assert (tmp_path / "dst").read_bytes() == (tmp_path / "expected").read_bytes()
            assert sorted(os.listdir(tmp_path)) == ["dst", "expected"]


def test_runs_with_executors_leave_the_threads_of_others_alone(tmp_path, src):
    counts = {}
    barrier = threading.Barrier(2)

    def both_run(done, total, name):
        counts.setdefault(threading.current_thread().name, set()).add(fs._backend.active.get_num_threads())
        if done == total:
            barrier.wait(30)

    def run(name):
        with ThreadPoolExecutor(1) as executor:
            checkpoint.compress(src, tmp_path / name, "50%", executor=executor, progress=both_run)
            counts[f"worker {name}"] = {executor.submit(fs._backend.active.get_num_threads).result()}

    before = fs._backend.active.get_num_threads()
    fs.set_num_threads(2)
    try:
        runs = [threading.Thread(target=run, args=(name,), name=name) for name in ("one", "two")]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join()
        assert fs._backend.active.get_num_threads() == 2
    finally:
        fs.set_num_threads(before)
    assert counts == {name: {2} for name in ("one", "two", "worker one", "worker two")}


def test_a_worker_uses_one_thread(monkeypatch):
    with ThreadPoolExecutor(1) as executor:
        tasks = [Task(fs._backend.active.get_num_threads, (), peak=1)]
        assert list(map_bounded(executor, tasks, 1)) == [1]


def test_small_tasks_are_handed_over_together():
    calls = []

    class Counting(Inline):
        def submit(self, function, /, *arguments, **options):
            calls.append(function)
            return super().submit(function, *arguments, **options)

    tasks = (Task(int, (at,), peak=1 if at % 1000 else 1 << 30) for at in range(5000))
    assert list(map_bounded(Counting(), tasks, 1 << 30)) == list(range(5000))
    assert len(calls) < 5000 // 40
