"""Rows of a file: each once, in order, whatever its neighbours are, and wherever the work was stopped."""

import errno
import json
import math
import os
import random
import shutil
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
from toy_writer import SIZES, WORDS, ToyWriter

from hanmo.batch import rows as rows_module
from hanmo.batch.files import Run
from hanmo.batch.rows import Row, read_rows, row_seed
from hanmo.batch.work import BatchWriter, window_rows
from hanmo.errors import ConfigError, DataError, MissingFile

GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
HOW = {"max_chars": 12, "min_chars": 4}
LENGTHS = [1, 2, 5, 20, 63, 64]  # the last leaves no room


def make(path, size, *, seed=1, lengths=LENGTHS):
    """Write a file of prompts of every length, each thirteenth row a bad one and each ninth with a seed of its own."""
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(1, size + 1):
            row = {"prompt": "".join(chance.choices(WORDS[5:], k=chance.choice(lengths))), "id": f"a{number}"}
            row |= {"seed": number} if number % 9 == 0 else {}
            file.write(json.dumps(row if number % 13 else {"text": "…"}, ensure_ascii=False) + "\n")
    return path


def written(path, out, *, writer=None, limit=None, settings=(), **options):
    """Do a run, or go on with it; stop after so many calls that append."""
    options = {"how": HOW} | options
    with Run(path, out, settings=dict(settings), seed=5) as run:
        work = BatchWriter(writer or ToyWriter(), seed=run.seed, **options)
        start, number = run.window(work.window)
        rows = read_rows(path, start=start, number=number)
        for lines in islice(work.write(rows, done=run.number), limit):
            run.append(lines)
    return records(out), records(out.with_name("results.errors.jsonl"))


def records(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]] if path.exists() else []


def test_results_say_the_row_the_id_the_prompt_and_the_texts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "今天", "id": "x", "seed": 9}\n\n{"prompt": "明月", "more": [1]}\r\n{"prompt": 5, "id": 7}'
    )
    good, bad = written(path, tmp_path / "results.jsonl", n=2)
    writer = ToyWriter()
    assert good == [
        {"row": 1, "id": "x", "prompt": "今天", "texts": writer.write("今天", n=2, seed=9, **HOW)},
        {"row": 3, "id": None, "prompt": "明月", "texts": writer.write("明月", n=2, seed=row_seed(5, 3), **HOW)},
    ]
    assert bad == [{"row": 4, "id": 7, "error": "the prompt is 5; expected a text"}]


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_texts_in_float32_are_equal_at_every_batch_size_and_alone(tmp_path, monkeypatch, kind):
    from hanmo import load, open_writer
    from hanmo.checkpoint.save import save
    from hanmo.families import FAMILIES
    from hanmo.model import Model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    save(
        Model(FAMILIES["gpt2_ml"].tensorflow.config(SIZES)).initialize(3), tmp_path / "model/x.ckpt", form="tensorflow"
    )
    (tmp_path / "model/vocab.txt").write_text("\n".join(WORDS), "utf-8")
    path = make(tmp_path / "prompts.jsonl", 30)
    open_it = load if kind == "torch" else lambda path: open_writer(path, weights="float32", threads=1)
    writer = open_it(tmp_path / "model/x.ckpt")
    alone = {
        row.number: writer.write(row.prompt, n=2, seed=row.seed or row_seed(5, row.number), **HOW)
        for row in read_rows(path)
        if row.error is None
    }
    assert len(alone) == 28 and len({text for texts in alone.values() for text in texts}) > 30
    for batch in (1, 3, 8):
        good, bad = written(path, tmp_path / f"{batch}" / "results.jsonl", writer=writer, batch=batch, n=2)
        assert {record["row"]: record["texts"] for record in good} == alone
        assert [record["row"] for record in bad] == [13, 26]


@pytest.mark.parametrize(
    "weights", ["float32", *(pytest.param(each, marks=pytest.mark.slow) for each in ("bfloat16", "int8", "int4"))]
)
def test_a_run_cut_at_random_and_resumed_gives_the_same_bytes_in_all_weights(tmp_path, monkeypatch, weights):
    from hanmo import open_writer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(GOLDENS / "gpt2_ml", tmp_path / "model")
    words = [*WORDS, *(chr(code) for code in range(ord("一"), ord("一") + 120) if chr(code) not in WORDS)]
    (tmp_path / "model/vocab.txt").write_text("\n".join(words[:120]), "utf-8")
    path, chance = make(tmp_path / "prompts.jsonl", 40, lengths=[1, 2, 5, 20]), random.Random(3)
    options = {"writer": open_writer(tmp_path / "model", weights=weights, threads=1), "how": {"max_chars": 25}}
    whole = tmp_path / "whole" / "results.jsonl"
    written(path, whole, **options)
    for number in range(3):
        out = tmp_path / f"{number}" / "results.jsonl"
        for limit in (chance.randint(1, 3), chance.randint(1, 3), None):
            written(path, out, limit=limit, **options)
        assert out.read_bytes() == whole.read_bytes()


def test_texts_of_a_prompt_and_texts_at_once_make_no_difference(tmp_path):
    path = make(tmp_path / "prompts.jsonl", 40)
    results = [written(path, tmp_path / f"{batch}" / "results.jsonl", batch=batch, n=3) for batch in (1, 7, 40)]
    assert results[0] == results[1] == results[2]
    assert [len(record["texts"]) for record in results[0][0]] == [3] * 37


@pytest.mark.parametrize("n", [1, 3])
def test_rows_that_join_when_others_end_have_the_same_lines_and_go_on_after_a_cut(tmp_path, n):
    path = make(tmp_path / "prompts.jsonl", 60)
    expected = written(path, tmp_path / "static" / "results.jsonl", n=n)
    writer, out = ToyWriter(dynamic=True), tmp_path / "joined" / "results.jsonl"
    assert written(path, out, writer=writer, n=n, batch=6) == expected
    assert writer.toy.prefilled == [] and max(writer.toy.steps) <= 6
    assert sum(writer.toy.steps) > 4 * len(writer.toy.steps)  # batches are nearly full to the end
    cut = tmp_path / "cut" / "results.jsonl"
    for limit in (1, 17, None):
        result = written(path, cut, writer=ToyWriter(dynamic=True), n=n, batch=4, limit=limit)
    assert result == expected and cut.read_bytes() == out.read_bytes()


def test_a_search_takes_one_row_after_another_and_nothing_from_earlier_texts(tmp_path, monkeypatch):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "今天"}\n{"prompt": "明月", "seed": 3}\n', "utf-8")
    expected = ToyWriter().write("今天", beams=3, n=2, **HOW)
    monkeypatch.setattr(ToyWriter, "cached_engine", None)
    good, bad = written(path, tmp_path / "results.jsonl", beams=3, n=2)
    assert [record["texts"] for record in good] == [expected]
    assert len(bad) == 1 and "leave seed and the settings of drawing out" in bad[0]["error"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"x", "the line is not JSON: Expecting value at character 1"),
        (b'{"prompt": "\xff"}', "the line is not UTF-8: invalid start byte at byte 12"),
        (b"[" * 100_000, "the line is not JSON that can be read"),
        (b"[" + b"1" * 5000 + b"]", "the line is not JSON that can be read"),
        (b'{"prompt": "x", "id": NaN}', "NaN is not a number of JSON"),
        (b"[1]", "the line is [1]; expected an object"),
        (b'{"promt": "x"}', "there is no \"prompt\"; the keys are ['promt']"),
        (b'{"prompt": null}', "the prompt is None; expected a text"),
        (b'{"prompt": "\\ud800"}', "lone surrogate U+D800"),
        (b'{"prompt": ""}', "the prompt is empty"),
        (b'{"prompt": "  "}', "holds nothing but white space"),
        ('{"prompt": "喵"}'.encode(), "no character that the vocabulary"),
        (b'{"prompt": "%s"}' % ("今" * 65).encode(), "the prompt has 65 tokens, the model knows 64 positions"),
        (b'{"prompt": "x", "seed": -1}', "seed is -1; expected a whole number"),
        (b'{"prompt": "x", "seed": true}', "seed is True; expected a whole number"),
        (b'{"prompt": "x", "seed": 1.5}', "seed is 1.5; expected a whole number"),
        (b'{"prompt": "x", "seed": 18446744073709551616}', "seed is 18446744073709551616; expected"),
        (b'{"prompt": "x", "id": [1]}', "the id is [1]; expected a text or a whole number"),
        (b'{"prompt": "x", "id": 1e999}', "the id is inf; expected"),
        (b" " * 2000 + b'{"prompt": "x"}', "the line is longer than 1,000 bytes"),
    ],
)
def test_a_bad_row_is_told_and_stops_nothing(tmp_path, monkeypatch, line, message):
    if line.startswith(b" "):
        monkeypatch.setattr(rows_module, "LONGEST", 1000)
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "\xe4\xbb\x8a"}\n' + line + b'\n{"prompt": "\xe4\xbb\x8a"}\n')
    good, bad = written(path, tmp_path / "results.jsonl")
    assert [record["row"] for record in good] == [1, 3]
    assert [record["row"] for record in bad] == [2]
    assert message in bad[0]["error"] and "\n" not in bad[0]["error"]


def test_half_a_character_in_an_id_comes_back_as_it_was(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "今", "id": "\\ud800"}\n', "utf-8")
    good, _ = written(path, tmp_path / "results.jsonl")
    assert good[0]["id"] == "\ud800"


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_row_that_fails_while_it_is_written_leaves_its_neighbours_alone(tmp_path, dynamic):
    path = make(tmp_path / "prompts.jsonl", 20)
    expected, bad = written(path, tmp_path / "a" / "results.jsonl")
    broken = next(record for record in expected if record["row"] == 6)["prompt"]
    toy = ToyWriter()
    first = toy.tokenizer.encode(broken, ends=False).ids

    def scores(ids):
        right = toy.toy.random_scores(ids)
        return right * math.nan if ids[: len(first)] == first else right

    broken_writer = ToyWriter(scores=scores, dynamic=dynamic)
    good, worse = written(path, tmp_path / "b" / "results.jsonl", writer=broken_writer)
    assert good == [record for record in expected if record["prompt"] != broken] and len(good) == len(expected) - 1
    assert [record["row"] for record in worse] == [6, 13] and "NaN" in worse[0]["error"] and worse[1:] == bad


def test_batches_hold_prompts_of_like_length(tmp_path):
    path = make(tmp_path / "prompts.jsonl", 64)
    writer = ToyWriter()
    written(path, tmp_path / "results.jsonl", writer=writer)
    lengths = [[len(prompt) for prompt in batch] for batch in writer.toy.prefilled]
    padding = sum(max(batch) - length for batch in lengths for length in batch)
    assert len(lengths) >= 7 and padding < 0.2 * sum(map(sum, lengths))


@pytest.mark.parametrize(("dynamic", "count"), [(False, 50_000), (True, 5_000)])
def test_many_rows_are_never_held_at_once(dynamic, count):
    writer = ToyWriter(scores=lambda ids: np.zeros(len(WORDS), np.float32), dynamic=dynamic)
    read = given = ahead = 0

    def rows():
        nonlocal read
        for read in range(1, count + 1):
            yield Row(read, read, prompt="今天" * (1 + read % 9), error="bad" if read % 20 else None)

    for lines in BatchWriter(writer, seed=1, how={"max_tokens": 1}).write(rows()):
        assert [line.number for line in lines] == list(range(given + 1, given + 1 + len(lines)))
        given += len(lines)
        ahead = max(ahead, read - given)
    assert given == count and ahead < window_rows(batch=8, n=1, beams=None) == 64
    assert sum(map(len, writer.toy.prefilled)) == (0 if dynamic else 2500)


def lines_of(out):
    """Give the lines of both files of a run in the order in which they were written, each with its file."""
    paths = (out, out.with_name("results.errors.jsonl"))
    lines = [(path.name, line) for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    return sorted(lines, key=lambda pair: json.loads(pair[1])["row"])


def test_a_run_goes_on_from_every_point_at_which_it_can_be_cut(tmp_path):
    path = make(tmp_path / "prompts.jsonl", 30)
    whole = written(path, tmp_path / "whole" / "results.jsonl")
    lines = lines_of(tmp_path / "whole" / "results.jsonl")
    record = (tmp_path / "whole" / "results.jsonl.run").read_bytes()
    tried = 0
    for place in range(0, len(lines) + 1, 3):
        for torn in (0, 1, 25, -1):
            folder = tmp_path / f"{place}.{torn}"
            folder.mkdir()
            (folder / "results.jsonl.run").write_bytes(record)
            cut = [*lines[:place], *((name, line[:torn]) for name, line in lines[place : place + 1])]
            for name, line in cut:
                with (folder / name).open("ab") as file:
                    file.write(line)
            writer = ToyWriter()
            assert written(path, folder / "results.jsonl", writer=writer, batch=1 + place % 9) == whole
            left = {json.loads(line)["prompt"] for name, line in lines[place:] if name == "results.jsonl"}
            encoded = {tuple(writer.tokenizer.encode(prompt, ends=False).ids) for prompt in left}
            assert all(any(tuple(prompt) in encoded for prompt in batch) for batch in writer.toy.prefilled)
            tried += 1
    assert tried == 44


@pytest.mark.parametrize("options", [{"batch": 3}, {"batch": 5, "n": 2}, {"beams": 2}])
def test_a_resumed_run_writes_the_very_batches_of_an_undisturbed_one(tmp_path, options):
    path = make(tmp_path / "prompts.jsonl", 50)
    path.write_text(path.read_text("utf-8").replace("\n", "\n\n", 40), "utf-8")  # blank lines are no rows
    whole = ToyWriter()
    written(path, tmp_path / "whole" / "results.jsonl", writer=whole, **options)
    for limit in (1, 4, 8, 13):
        out = tmp_path / f"{limit}" / "results.jsonl"
        written(path, out, limit=limit, **options)
        resumed = ToyWriter()
        written(path, out, writer=resumed, **options)
        assert all(batch in whole.toy.prefilled for batch in resumed.toy.prefilled)
        for name in ("results.jsonl", "results.errors.jsonl"):
            assert out.with_name(name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_seed_that_nobody_chose_is_kept_for_the_rest(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 30), tmp_path / "results.jsonl"
    seeds = []
    for _ in range(2):
        with Run(path, out, settings={}) as run:
            work = BatchWriter(ToyWriter(), seed=run.seed, batch=1, how=HOW)
            for lines in islice(work.write(read_rows(path, start=run.start, number=run.number)), 12):
                run.append(lines)
            seeds.append(run.seed)
    assert seeds[0] == seeds[1]
    rows, written_for = list(read_rows(path)), {record["row"]: record["texts"] for record in records(out)}
    for number in (1, 20):  # of the first part and the second
        seed = row_seed(seeds[0], number)
        assert written_for[number] == ToyWriter().write(rows[number - 1].prompt, seed=seed, **HOW)


def test_a_finished_run_is_known(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 15), tmp_path / "results.jsonl"
    written(path, out)
    with Run(path, out, settings={}) as run:
        assert run.finished and (run.rows, run.bad) == (15, 1)


def test_other_settings_prompts_or_seeds_are_refused_and_change_nothing(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 30), tmp_path / "results.jsonl"
    written(path, out, limit=2, settings={"top_k": 5, "stops": ("a",)}, batch=2)
    before = out.read_bytes()
    with pytest.raises(ConfigError, match="started with other settings: top_k was 5 and is 8; give the same"):
        Run(path, out, settings={"top_k": 8, "stops": ("a",)})
    with pytest.raises(ConfigError, match="started with other settings: seed was 5 and is 6"):
        Run(path, out, settings={"top_k": 5, "stops": ("a",)}, seed=6)
    with pytest.raises(ConfigError, match="seed is -1"):
        Run(path, out, settings={}, seed=-1)
    make(path, 31)
    with pytest.raises(ConfigError, match=r"started with other prompts than .*prompts\.jsonl holds now"):
        Run(path, out, settings={"top_k": 5, "stops": ("a",)})
    assert out.read_bytes() == before


def test_a_run_that_has_no_row_yet_may_be_begun_otherwise(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 5), tmp_path / "results.jsonl"
    written(path, out, settings={"top_k": 5})
    out.write_bytes(out.read_bytes()[:10])
    with Run(path, out, settings={"top_k": 8}) as run:
        assert run.rows == 0 and not run.finished
    assert len(written(path, out, settings={"top_k": 8})[0]) == 5


RUN = b'{"settings": {}, "seed": %s}'


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"[1]", b"{}", b'{"settings": 5, "seed": 1}', b"\xff", b"[" * 100_000),
        *(RUN % seed for seed in (b"-1", b"1e400", b'"5"')),
    ],
)
def test_a_file_that_no_run_wrote_is_not_touched(tmp_path, content):
    path, out = make(tmp_path / "prompts.jsonl", 5), tmp_path / "results.jsonl"
    out.write_text("mine\n")
    if content is not None:
        (tmp_path / "results.jsonl.run").write_bytes(content)
    with pytest.raises(DataError, match=r"results\.jsonl is not empty, and there is no results\.jsonl\.run beside it"):
        Run(path, out, settings={})
    assert out.read_text() == "mine\n"


def test_a_folder_is_no_file_of_results(tmp_path):
    with pytest.raises(DataError, match="is a folder; give a file for the results"):
        Run(make(tmp_path / "prompts.jsonl", 5), tmp_path, settings={})


def test_results_may_go_to_what_cannot_be_read_again(tmp_path):
    os.mkfifo(tmp_path / "results.jsonl")
    with Run(make(tmp_path / "prompts.jsonl", 5), tmp_path / "results.jsonl", settings={}) as run:
        assert run.rows == 0 and not run.finished


def test_results_of_one_stem_are_two_runs(tmp_path):
    path = make(tmp_path / "prompts.jsonl", 5)
    for name, seed in (("a.jsonl", 1), ("a.json", 2)):
        with Run(path, tmp_path / name, settings={}, seed=seed) as run:
            run.append(next(iter(BatchWriter(ToyWriter(), seed=seed, how=HOW).write(read_rows(path)))))
    for name, seed in (("a.jsonl", 1), ("a.json", 2)):
        with Run(path, tmp_path / name, settings={}) as run:
            assert run.rows and run.seed == seed


def test_a_line_that_does_not_follow_is_refused(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 9), tmp_path / "results.jsonl"
    written(path, out)
    lines = out.read_bytes().splitlines(keepends=True)
    for broken in ([*lines[:3], *lines[4:]], [*lines[:3], b"mine\n"], [*lines, lines[-1]]):
        out.write_bytes(b"".join(broken))
        with pytest.raises(DataError, match=r"line (4|10) of .*results\.jsonl does not continue"):
            Run(path, out, settings={})
        assert out.read_bytes() == b"".join(broken)


def test_prompts_that_are_not_there_empty_or_the_results_themselves_are_refused(tmp_path):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    with pytest.raises(MissingFile, match=r"there is no file of prompts at .*prompts\.jsonl"):
        Run(path, out, settings={})
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"prompts\.jsonl holds no rows"):
        Run(path, out, settings={})
    assert sorted(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match=r"the results would replace the prompts, .*prompts\.jsonl"):
        Run(path, path, settings={})


@pytest.mark.skipif(os.name == "nt", reason="locks of POSIX")
def test_two_runs_at_once_are_refused(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 5), tmp_path / "results.jsonl"
    told = rf"another process is writing to .*results\.jsonl \(pid {os.getpid()}\); wait for it"
    with Run(path, out, settings={}), pytest.raises(DataError, match=told):
        Run(path, out, settings={})
    assert len(written(path, out)[0]) == 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_told_with_the_file(tmp_path):
    path, out = make(tmp_path / "prompts.jsonl", 5), tmp_path / "results.jsonl"
    out.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*results\.jsonl'") as raised:
        written(path, out)
    assert raised.value.errno == errno.ENOSPC
    out.unlink()
    assert len(written(path, out)[0]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 0}, "batch is 0"), ({"n": 0}, "n is 0"), ({"how": {"top_k": 0}}, "top_k is 0")],
)
def test_a_setting_out_of_range_is_refused_before_the_first_row(options, message):
    with pytest.raises(ConfigError, match=message):
        BatchWriter(ToyWriter(), seed=1, **{"how": {}} | options)


def test_seeds_of_rows_differ_and_stay():
    assert row_seed(5, 3) == 12449168470066559583
    assert len(set(map(row_seed, [5] * 1000, count()))) == 1000 and row_seed(5, 11) != row_seed(51, 1)


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("prompts.txt", "今天\n\n 明月 \r\n5\n", ["今天", " 明月 ", "5"]),
        ("prompts", "\ufeff今天\n{}\n", ["今天", "{}"]),
        ("prompts.txt", '\n {"prompt": "今"}\n', ["今"]),
        ("prompts.jsonl", '今天\n{"prompt": "今"}\n', ["", "今"]),
    ],
)
def test_a_plain_text_has_a_prompt_in_each_line(tmp_path, name, text, prompts):
    path = tmp_path / name
    path.write_bytes(text.encode())
    rows = list(read_rows(path))
    assert [row.prompt for row in rows] == prompts
    assert list(read_rows(path, start=rows[0].end, number=rows[0].number)) == rows[1:]


def test_a_plain_text_that_is_not_utf8_has_bad_rows(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("今天\n".encode() + "明月\n".encode("gb18030"))
    first, second = read_rows(path)
    assert first.error is None and "the line is not UTF-8" in second.error
