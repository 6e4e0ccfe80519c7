"""The side-by-side measurement: turns, rows, environments, and the workers that the project's own packages can run."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

import hanmo

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 2002,
}


@pytest.fixture(scope="module")
def driver():
    """The driver, its folder on the path as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        spec = importlib.util.spec_from_file_location("decode_peers_under_test", ROOT / "benchmarks/decode_peers.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def bench(driver, tmp_path_factory):
    """A tiny checkpoint of GPT2_ML's form, and everything else in folders that go."""
    folder = tmp_path_factory.mktemp("peers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        import load_large

        patch.setattr(load_large, "MEGA", {**load_large.MEGA, **TINY})
        checkpoint = driver.find_checkpoint(None, folder)
        yield driver.Bench(
            checkpoint=checkpoint,
            vocabulary=driver.find_vocabulary(checkpoint, folder),
            envs=folder,
            threads=1,
            rounds=2,
            peers=("transformers", "torch"),
            article_tokens=4,
            small=None,
        )


def worker(driver, folder: Path, name: str, body: str = "    return options['name']"):
    """Start a worker that answers `do` as the body says."""
    script = folder / f"{name}.py"
    head = (
        f"import sys, threading\nsys.path.insert(0, {str(ROOT / 'benchmarks' / 'peers')!r})\nfrom worker import serve\n"
    )
    script.write_text(
        f"{head}def open_model(options):\n  def do(**more):\n{body}\n  return {{'do': do}}\nserve(open_model)\n"
    )
    return driver.Worker(name, sys.executable, script, {"name": name}, folder / f"{name}.log")


def test_workers_take_turns_and_the_order_is_turned_round_each_round(driver, tmp_path):
    told = f"    open({str(tmp_path / 'order')!r}, 'a').write(options['name'])\n    return [options['name'], more]"
    with worker(driver, tmp_path, "a", told) as a, worker(driver, tmp_path, "b", told) as b:
        turns = driver.take_turns([(a, {"do": "do", "x": 1}), (b, {"do": "do"})], [{"x": 2}, {}, {"y": 3}])
    assert (tmp_path / "order").read_text() == "abbaab"
    assert turns.answers[0] == [["a", {"x": 2}], ["a", {"x": 1}], ["a", {"x": 1, "y": 3}]]
    assert turns.answers[1] == [["b", {"x": 2}], ["b", {}], ["b", {"y": 3}]]


@pytest.mark.slow
def test_a_worker_that_computes_while_it_should_wait_is_seen(driver, tmp_path):
    spin = "    threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()"
    sleep = "    import time; time.sleep(0.5)"
    with worker(driver, tmp_path, "quiet", sleep) as quiet, worker(driver, tmp_path, "other", sleep) as other:
        assert driver.take_turns([(quiet, {"do": "do"}), (other, {"do": "do"})], [{}]).idle < 0.1
    with worker(driver, tmp_path, "busy", spin) as busy, worker(driver, tmp_path, "measured", sleep) as measured:
        assert driver.take_turns([(busy, {"do": "do"}), (measured, {"do": "do"})], [{}]).idle > 0.1
        busy._process.kill()


def test_what_a_library_prints_does_not_disturb_the_answers(driver, tmp_path):
    noise = "    import os; print('noise'); os.system('echo more'); return 7"
    with worker(driver, tmp_path, "noisy", noise) as noisy:
        assert noisy.ask("do") == 7
    assert {"noise", "more"} <= set((tmp_path / "noisy.log").read_text().split())


def test_a_worker_that_dies_is_named_with_its_last_words(driver, tmp_path):
    with (
        worker(driver, tmp_path, "weak", "    raise ValueError('out of paper')") as weak,
        pytest.raises(RuntimeError, match=r"weak ended with 1: .*ValueError: out of paper \(all of it in .*weak.log\)"),
    ):
        weak.ask("do")


def test_the_first_output_is_timed_and_the_process_stopped_there(driver, tmp_path):
    slow = "import time\ntry: print('x', flush=True); time.sleep(20)\nexcept KeyboardInterrupt: raise SystemExit(130)"
    begun = time.perf_counter()
    found = driver.first_output([sys.executable, "-c", slow], end=False, log=tmp_path / "log")
    assert found.first <= found.whole <= time.perf_counter() - begun < 15
    assert found.text.strip() == "x" and 0 < found.memory["RssAnon"] < found.memory["VmRSS"]
    with pytest.raises(RuntimeError, match=r"ended with 3: no paper"):
        fails = "import sys; print('no paper', file=sys.stderr); sys.exit(3)"
        driver.first_output([sys.executable, "-c", fails], end=True, log=tmp_path / "log")


def test_a_ratio_is_the_median_of_the_rounds_ratios(driver):
    ours, theirs = [[2.0, 2.0, 9.0], [4.0], [1.0]], [[6.0], [6.0], [5.0]]
    row = driver.compared("t", 3, [({"name": "us"}, ours), ({"name": "them"}, theirs)], unit="ms", system="AVX = 1")
    assert (row["ratio"], row["ratio_lowest"], row["ratio_highest"], row["met"]) == (3.0, 1.5, 5.0, True)
    assert [side["median"] for side in row["sides"]] == [2.0, 6.0]
    text = driver.markdown(row)
    assert "| us | 2 | 1–4 |" in text and "Ratio 3 (1.5–5); goal at least 3: **met**." in text
    assert "- system: AVX = 1" in text


@pytest.mark.parametrize(("goal", "most", "met"), [(1.0, True, False), (2.0, True, True), (2.0, False, False)])
def test_a_goal_is_met_or_not(driver, goal, most, met):
    row = driver.single("t", goal, {"name": "us", "bytes": 1234}, [5.0], [1.5], unit="s", most=most)
    assert row["met"] is met
    assert "| us | 5 | 5–5 | 1,234 |" in driver.markdown(row)


def test_a_table_names_the_processor(driver):
    row = {**driver.single("t", None, {"name": "us"}, [5.0], [1.5], unit="s"), "processor": "a Z80"}
    assert "| a Z80 | median, s |" in driver.markdown(row)


def test_a_peer_that_dies_is_left_out_with_its_last_words(driver, tmp_path, capsys):
    died = "    import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    with driver._left_out_if_it_dies("llama.cpp-native"), worker(driver, tmp_path, "weak", died) as weak:
        weak.ask("do")
    assert "left out: llama.cpp-native: weak ended with -4" in capsys.readouterr().err


def test_the_builds_of_llamacpp_differ_in_their_instructions(driver):
    from peers.environments import ENVIRONMENTS

    native, without_amx = (ENVIRONMENTS[peer] for peer in driver.COMPILED)
    assert native.steps == without_amx.steps and "--no-cache-dir" in native.steps[0]
    assert "GGML_NATIVE=ON" in native.variables["CMAKE_ARGS"]
    assert "AMX" not in without_amx.variables["CMAKE_ARGS"] and "AVX512_VNNI=ON" in without_amx.variables["CMAKE_ARGS"]


def test_without_a_goal_nothing_is_judged(driver):
    row = driver.single("t", None, {"name": "us"}, [5.0], [1.5], unit="s")
    assert row["met"] is None and "goal" not in driver.markdown(row)


def test_an_environment_that_is_there_is_not_made_again(driver, tmp_path):
    from peers.environments import ENVIRONMENTS

    place = tmp_path / "bert4keras"
    place.mkdir()
    (place / "installed.json").write_text(json.dumps(ENVIRONMENTS["bert4keras"].steps))
    assert driver.python_of("bert4keras", tmp_path) == place / "bin" / "python"
    assert list(place.iterdir()) == [place / "installed.json"]


def test_a_peer_for_which_no_python_is_old_enough_is_named(driver, tmp_path, monkeypatch):
    from peers import environments

    monkeypatch.setitem(environments.ENVIRONMENTS, "old", environments.Environment((), newest=(3, 9)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"old runs under Python 3\.9 at most"):
        driver.python_of("old", tmp_path)


def test_a_checkpoint_that_is_not_there_is_named(driver, tmp_path):
    with pytest.raises(SystemExit, match=r"no TensorFlow checkpoint .*nothing\.index with a config\.json"):
        driver.find_checkpoint(tmp_path / "nothing", tmp_path)


def test_words_of_a_made_up_vocabulary_are_characters(bench):
    words = bench.vocabulary.read_text("utf-8").split("\n")[:-1]
    assert len(words) == len(set(words)) == TINY["vocab_size"] - 2
    assert words[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {len(word) for word in words[104:]} == {1}


def test_peers_get_the_checkpoints_sizes_and_a_vocabulary_that_8_divides(bench):
    wanted = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "inner": 64, "positions": 1024, "vocab_size": 2000}
    assert bench.sizes == wanted


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["transformers", "torch"])
def test_a_token_is_timed_beside_a_peer(driver, bench, peer, monkeypatch):
    from dataclasses import replace

    from peers import bench as peers_bench

    monkeypatch.setattr(peers_bench, "python_of", lambda peer, folder: sys.executable)
    row = next(driver.decode(replace(bench, peers=(peer,))))
    assert row["title"].startswith("A token at context 128–256: Hanmo int8 against")
    assert all(side["lowest"] > 0 and side["bytes"] > 0 and side["VmRSS"] > 0 for side in row["sides"])
    assert row["sides"][1]["name"].startswith(
        "transformers" if peer == "transformers" else f"Hanmo {hanmo.__version__} float32 (torch"
    )


@pytest.mark.slow
def test_rows_are_timed_beside_one(driver, bench):
    for count, row in zip((8, 16), driver.batch(bench), strict=True):
        assert [side["name"].rpartition(", ")[2] for side in row["sides"]] == [f"batch {count}", "batch 1"]
        assert row["ratio"] > 0 and row["goal"] == {8: 6, 16: 8}[count]


@pytest.mark.slow
def test_the_articles_script_says_how_long_each_token_took(driver, bench):
    whole, steps = driver._script(bench, [driver.HANMO, "run"], 4)
    assert len(steps) == 4 and 0 < sum(steps) < whole
