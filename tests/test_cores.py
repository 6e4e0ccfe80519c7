"""Cores are counted by affinity and by the quotas of cgroups of both versions; the commands take them by --threads."""

import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from hanmo import cores
from hanmo.cli.app import app
from hanmo.errors import ConfigError


def group(root, files, lines):
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "own").write_text(lines)
    return list(cores._quotas(root / "cgroup", root / "own"))


@pytest.mark.parametrize(
    ("files", "lines", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, "0::/\n", {2}),
        ({"cpu.max": "max 100000\n"}, "0::/\n", set()),
        ({"cpu.max": "50000 100000\n"}, "0::/../host/path\n", {0}),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "350000 100000"}, "0::/a/b\n", {3}),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "5:memory:/\n", {3}),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", set()),
        ({"cpu/d/cpu.cfs_quota_us": "400000", "cpu/d/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/d/e\n", {4}),
    ],
)
def test_quotas_of_both_versions_are_found_in_this_group_and_those_above(tmp_path, files, lines, expected):
    assert set(group(tmp_path, files, lines)) == expected


def test_the_least_of_affinity_and_quotas_counts_and_one_core_is_left(monkeypatch):
    for quotas, expected in (([], None), ([1, 3], 1), ([0], 1)):
        monkeypatch.setattr(cores, "_quotas", lambda root, own, quotas=quotas: iter(quotas))
        cores.cores.cache_clear()
        assert cores.cores() == (expected or cores.cores())
        assert 1 <= cores.cores() <= (os.cpu_count() or 1)
    cores.cores.cache_clear()


def test_torch_takes_the_threads_that_are_given_else_a_core_each(monkeypatch):
    before = torch.get_num_threads()
    try:
        cores.set_torch_threads(3)
        assert torch.get_num_threads() == 3
        cores.set_torch_threads(None)  # OMP_NUM_THREADS is set for all tests
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(cores, "cores", lambda: 2)
        cores.set_torch_threads(None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("OMP_WAIT_POLICY", None, "PASSIVE"),
        ("OMP_WAIT_POLICY", "active", "active"),
        ("THP_MEM_ALLOC_ENABLE", None, "1"),
        ("THP_MEM_ALLOC_ENABLE", "0", "0"),
    ],
)
def test_the_command_sets_what_torch_reads_when_it_begins_unless_the_user_did(name, given, expected):
    program = f"import os, hanmo.cli.app\nhanmo.cli.app.run = lambda: print(os.environ[{name!r}])\n"
    environment = {each: value for each, value in os.environ.items() if each != name}
    environment |= {} if given is None else {name: given}
    program += "import hanmo.cli\nhanmo.cli.main()"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
    )
    assert result.stdout.strip() == expected, result.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("cli.train", ["finetune", "--model", "x", "--data", "y"]),
        ("cli.train", ["pretrain", "--config", "x", "--tokenizer", "z", "--data", "y"]),
        ("opening", ["write", "今天", "--weights", "float32"]),
        ("cli.run", ["run"]),
    ],
)
def test_the_threads_of_a_command_reach_torch(monkeypatch, tmp_path, module, arguments):
    def refuse(threads):
        raise ConfigError(f"asked for {threads} threads")

    monkeypatch.setattr(f"hanmo.{module}.set_torch_threads", refuse)
    arguments = [*arguments, "--threads", "3", *(["--out", str(tmp_path / "out")] if module == "cli.train" else [])]
    arguments += ["script.py"] if module == "cli.run" else []
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and result.stderr == "hanmo: asked for 3 threads\n"


def test_the_threads_of_a_command_reach_the_cpu_engine(monkeypatch):
    def refuse(path, *, threads, **options):
        raise ConfigError(f"asked for {threads} threads")

    monkeypatch.setattr("hanmo.pipeline.open_writer", refuse)
    result = CliRunner().invoke(app, ["write", "今天", "--threads", "3"])
    assert result.exit_code == 1 and result.stderr == "hanmo: asked for 3 threads\n"


@pytest.mark.parametrize(("feature", "fast"), [("avx512bf16", True), ("amx-bf16", True), ("avx512f", False)])
def test_bfloat16_is_fast_where_the_processor_multiplies_it(monkeypatch, feature, fast):
    binding = pytest.importorskip("llvmlite.binding")
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: {feature: True})
    assert cores.has_fast_bfloat16.__wrapped__() is fast
