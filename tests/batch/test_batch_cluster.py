"""The same work on a Ray cluster: every row once and in order, also when a worker is killed or the run is."""

import os
import signal
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import test_batch
import toy_writer

from hanmo.batch.cluster import write_on_cluster
from hanmo.batch.files import Run
from hanmo.batch.rows import read_rows
from hanmo.batch.work import BatchWriter, window_rows
from hanmo.errors import ConfigError, MissingExtra

OPTIONS = {"seed": 5, "n": 2, "beams": None, "batch": 4, "how": test_batch.HOW}
PATHS = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[2])))
HANMO = [sys.executable, "-m", "hanmo.cli"]


def test_without_ray_the_way_to_install_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"needs Ray; install it with: pip install 'hanmo\[ray\]'"):
        next(write_on_cluster(tmp_path / "prompts.jsonl", toy_writer.ToyWriter, OPTIONS))


def test_without_a_cluster_how_to_start_one_is_told(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'hanmo[ray]'")

    def init(**options):
        assert options["address"] == "auto"
        raise ConnectionError("could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", init)
    message = r"no Ray cluster is found; start one with `ray start --head`.*RAY_AUTH_MODE=token"
    with pytest.raises(ConfigError, match=message):
        next(write_on_cluster(tmp_path / "prompts.jsonl", toy_writer.ToyWriter, OPTIONS))


@pytest.fixture(scope="module")
def cluster():
    """Start a cluster of two machines of one processor on this one."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'hanmo[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATHS)  # of the workers
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def run(path, out, folder, *, each=None, limit=None):
    """Go on with a run on the cluster; call `each` after every part; stop after so many."""
    folder.mkdir(exist_ok=True)
    with Run(path, out, settings={}, seed=5) as run:
        open_model = partial(toy_writer.started, folder, pause=0.1)
        start, number = run.window(window_rows(batch=4, n=2, beams=None))
        parts = write_on_cluster(path, open_model, OPTIONS, start=start, number=number, done=run.number)
        for lines in islice(parts, limit):
            run.append(lines)
            if each is not None:
                each()
        parts.close()


def results(out):
    return test_batch.records(out), test_batch.records(out.with_name("results.errors.jsonl"))


pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def test_every_row_comes_once_though_a_worker_is_killed(tmp_path, cluster):
    path = test_batch.make(tmp_path / "prompts.jsonl", 300)
    whole = test_batch.written(path, tmp_path / "whole" / "results.jsonl", n=2, batch=4)
    killed = []

    def kill_one():
        pids = sorted(int(file.name) for file in (tmp_path / "pids").iterdir())
        if not killed and len(pids) == 2:
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    run(path, tmp_path / "results.jsonl", tmp_path / "pids", each=kill_one)
    assert len(killed) == 1
    assert len(list((tmp_path / "pids").iterdir())) == 3  # two workers, and one in the place of the first
    assert results(tmp_path / "results.jsonl") == whole
    rows = [record["row"] for record in [*whole[0], *whole[1]]]
    assert sorted(rows) == list(range(1, 301))


def test_a_run_that_stopped_goes_on_with_the_cluster_and_without(tmp_path, cluster):
    path, out = test_batch.make(tmp_path / "prompts.jsonl", 150), tmp_path / "results.jsonl"
    whole = test_batch.written(path, tmp_path / "whole" / "results.jsonl", n=2)
    run(path, out, tmp_path / "pids", limit=2)
    half = len(results(out)[0])
    assert 0 < half < len(whole[0])
    with Run(path, out, settings={}, seed=5) as rest:
        work = BatchWriter(toy_writer.ToyWriter(), **OPTIONS)
        rest.append(next(work.write(read_rows(path, start=rest.start, number=rest.number))))
    run(path, out, tmp_path / "pids")
    assert results(out) == whole


def test_what_a_worker_cannot_do_is_raised_here(tmp_path, cluster):
    path = test_batch.make(tmp_path / "prompts.jsonl", 9)
    with pytest.raises(ConfigError, match="top_k is 0"):
        next(write_on_cluster(path, toy_writer.ToyWriter, OPTIONS | {"how": {"top_k": 0}}))
    with pytest.raises(ConfigError, match="the device is a GPU, and the Ray cluster has none"):
        next(write_on_cluster(path, toy_writer.ToyWriter, OPTIONS, gpus=True))


def test_the_command_writes_the_same_with_and_without_a_cluster(tmp_path, cluster):
    from hanmo.checkpoint.save import save
    from hanmo.families import FAMILIES
    from hanmo.model import Model

    model = Model(FAMILIES["gpt2_ml"].tensorflow.config(toy_writer.SIZES)).initialize(3)
    save(model, tmp_path / "x.ckpt", form="tensorflow")
    (tmp_path / "vocab.txt").write_text("\n".join(toy_writer.WORDS), "utf-8")
    test_batch.make(tmp_path / "prompts.jsonl", 20)
    for name, more in (("a", []), ("b", ["--ray"])):
        command = [*HANMO, "write", "--model", "x.ckpt", "--file", "prompts.jsonl", "--out", f"{name}.jsonl", *more]
        command += ["--seed", "5", "--max-chars", "9"]
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": PATHS}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.stdout == "" and done.stderr.endswith(  # Ray has words of its own
            f"hanmo: finished: 19 rows are in {name}.jsonl, 1 failed and are in {name}.errors.jsonl\n"
        )
    for end in ("jsonl", "errors.jsonl"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
