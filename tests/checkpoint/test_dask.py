"""Checkpoints on the workers of a dask.distributed cluster."""

import os
import signal

import numpy as np
import pytest

from fastsparse import checkpoint

distributed = pytest.importorskip("distributed", reason="the extra dask")

RECIPES = {scope: checkpoint.Recipe(default="60%", scope=scope) for scope in ("tensor", "global")}


@pytest.fixture(scope="module")
def src(tmp_path_factory):
    rng = np.random.default_rng(12)
    tensors = {f"{i}.weight": (rng.standard_normal((64, 80)) * (i + 1)).astype(np.float32) for i in range(24)}
    path = tmp_path_factory.mktemp("dask") / "src"
    checkpoint.save(tensors, path)
    return path


@pytest.fixture
def cluster():
    """Two workers, each a process of its own, with a nanny that starts another where one dies."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        yield cluster


pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(120)]


@pytest.mark.parametrize("kills", [0, 2])
def test_a_cluster_gives_the_same_bytes_whoever_dies(tmp_path, src, cluster, kills):
    left = dict.fromkeys(RECIPES, kills)
    with distributed.Client(cluster) as client, client.get_executor() as executor:
        for scope, recipe in RECIPES.items():
            expected = checkpoint.compress(src, tmp_path / f"{scope}-here", recipe)

            def kill(done, total, name, scope=scope):
                """At a third and at two thirds: while tensors are counted, and while they are packed."""
                if left[scope] and done > total * (1 + kills - left[scope]) / (1 + kills):
                    left[scope] -= 1
                    running = [nanny.pid for nanny in cluster.workers.values() if nanny.pid]
                    os.kill(running[0], signal.SIGKILL)

            found = checkpoint.compress(src, tmp_path / scope, recipe, executor=executor, progress=kill)
            assert found.tensors == expected.tensors
            assert (tmp_path / scope).read_bytes() == (tmp_path / f"{scope}-here").read_bytes()
    assert set(left.values()) == {0}
