"""What a run that was killed leaves: finished shards are taken over where they are what the next run would write."""

import json
import multiprocessing
import os
import signal

import ml_dtypes
import numpy as np
import pytest

import fastsparse as fs
from fastsparse import checkpoint

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is Unix's"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

SHARDS = [f"model-{i}.safetensors" for i in range(4)]
JOBS = {
    "tensor": checkpoint.Recipe(default="50%", exclude=["bias"]),
    "global": checkpoint.Recipe(default="60%", scope="global"),
    "decompress": None,
}


def run(job, src, dst, **options):
    if JOBS[job] is None:
        return checkpoint.decompress(src, dst, **options)
    return checkpoint.compress(src, dst, JOBS[job], **options)


def killed(job, src, dst, shards, **options):
    """Runs the job in another process, which is killed when it has finished so many shards."""
    partial = os.path.join(os.path.dirname(dst), f".{os.path.basename(dst)}.partial")

    def progress(done, total, name):
        if os.path.isdir(partial) and sum(shard in os.listdir(partial) for shard in SHARDS) == shards:
            os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(
        target=run, args=(job, src, dst), kwargs={"progress": progress, **options}
    )
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert [shard for shard in SHARDS if os.path.exists(os.path.join(partial, shard))] == SHARDS[:shards]
    return partial


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def dense(tmp_path):
    """A model folder of four shards with two tensors each, one of which stays dense."""
    rng = np.random.default_rng(21)
    (tmp_path / "dense").mkdir()
    where = {}
    for i, shard in enumerate(SHARDS):
        w = (rng.standard_normal((96, 80)) * (i + 1)).astype(ml_dtypes.bfloat16 if i % 2 else np.float32)
        tensors = {f"{i}.weight": w, f"{i}.bias": np.arange(10 * i)}
        checkpoint.save(tensors, tmp_path / "dense" / shard)
        where.update(dict.fromkeys(tensors, shard))
    (tmp_path / "dense" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "dense" / "config.json").write_text("{}")
    return tmp_path / "dense"


@pytest.fixture(params=JOBS)
def job(request):
    return request.param


@pytest.fixture
def src(tmp_path, dense, job):
    if JOBS[job] is not None:
        return dense
    checkpoint.compress(dense, tmp_path / "packed", "50%")
    return tmp_path / "packed"


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_finished_shards_are_taken_over(tmp_path, src, job, shards):
    expected = run(job, src, tmp_path / "whole")
    partial = killed(job, src, tmp_path / "dst", shards)
    files = {shard: os.stat(os.path.join(partial, shard)).st_ino for shard in SHARDS[:shards]}
    found = run(job, src, tmp_path / "dst")
    assert found.resumed == tuple(SHARDS[:shards])
    assert found.tensors == expected.tensors
    assert content(tmp_path / "dst") == content(tmp_path / "whole")
    assert {shard: os.stat(tmp_path / "dst" / shard).st_ino for shard in files} == files
    assert not os.path.exists(partial)


def test_one_kill_after_the_other_costs_nothing(tmp_path, src, job):
    run(job, src, tmp_path / "whole")
    (tmp_path / "dst").mkdir()
    for shards in (1, 2, 3, 3):
        killed(job, src, tmp_path / "dst", shards, overwrite=True)
    assert run(job, src, tmp_path / "dst", overwrite=True).resumed == tuple(SHARDS[:3])
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def cut(path):
    os.truncate(path, os.path.getsize(path) - 1)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda partial: flip(partial / SHARDS[1], -1), "the last byte of the data"),
        (lambda partial: flip(partial / SHARDS[1], -3000), "one in the middle"),
        (lambda partial: flip(partial / SHARDS[1], 0), "the length of the header"),
        (lambda partial: flip(partial / SHARDS[1], 9), "the header"),
        (lambda partial: cut(partial / SHARDS[1]), "the end"),
        (lambda partial: os.replace(partial / SHARDS[0], partial / SHARDS[1]), "another shard"),
        (lambda partial: os.remove(partial / f".{SHARDS[1]}.done"), "no record"),
        (lambda partial: flip(partial / f".{SHARDS[1]}.done", -5), "a damaged record"),
        (lambda partial: (partial / f".{SHARDS[1]}.done").write_bytes(b""), "an empty record"),
        (
            lambda partial: os.replace(partial / f".{SHARDS[0]}.done", partial / f".{SHARDS[1]}.done"),
            "the record of another",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_shard_is_written_again(tmp_path, dense, damage, why):
    run("tensor", dense, tmp_path / "whole")
    partial = killed("tensor", dense, tmp_path / "dst", 2)
    damage(type(tmp_path)(partial))
    # What was written last says nothing: only the bytes do.
    for name in os.listdir(partial):
        os.utime(os.path.join(partial, name), (1, 1))
    assert SHARDS[1] not in run("tensor", dense, tmp_path / "dst").resumed
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


def test_another_job_takes_nothing_over(tmp_path, dense):
    for recipe in ("2:4", "50.01%", checkpoint.Recipe(default="50%", scope="global")):
        killed("tensor", dense, tmp_path / "dst", 3, overwrite=True)
        checkpoint.compress(dense, tmp_path / "whole", recipe, overwrite=True)
        assert checkpoint.compress(dense, tmp_path / "dst", recipe, overwrite=True).resumed == ()
        assert content(tmp_path / "dst") == content(tmp_path / "whole")


def test_a_source_that_changed_is_read_again(tmp_path, dense):
    """One weight of a shard that is finished already, with the time of the file set back."""
    killed("tensor", dense, tmp_path / "dst", 2)
    time = os.stat(dense / SHARDS[0]).st_mtime_ns
    flip(dense / SHARDS[0], -5)
    os.utime(dense / SHARDS[0], ns=(time, time))
    assert run("tensor", dense, tmp_path / "dst").resumed == (SHARDS[1],)
    run("tensor", dense, tmp_path / "whole")
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


def test_nothing_else_that_was_left_stays(tmp_path, dense):
    partial = killed("tensor", dense, tmp_path / "dst", 1)
    os.symlink(dense / SHARDS[1], os.path.join(partial, SHARDS[1]))
    os.mkdir(os.path.join(partial, "deep"))
    for name in ("deep/file", "letter", f".{SHARDS[3]}.done"):
        with open(os.path.join(partial, name), "w") as file:
            file.write("x")
    assert run("tensor", dense, tmp_path / "dst").resumed == (SHARDS[0],)
    run("tensor", dense, tmp_path / "whole")
    assert content(tmp_path / "dst") == content(tmp_path / "whole")


def test_a_side_file_never_takes_the_name_of_a_record(tmp_path, dense):
    (dense / f".{SHARDS[0]}.done").write_text("x")
    with pytest.raises(fs.FormatError, match="the name is needed"):
        run("tensor", dense, tmp_path / "dst")
    assert sorted(os.listdir(tmp_path)) == ["dense"]
