"""Data rows: errors name the line, spans must be the text they name, duplicates stay on one side of a split."""

import json

import pytest

from hanmo.errors import DataError, MissingFile, PromptError
from hanmo.tasks.readers import read_data
from hanmo.tasks.rows import Row, as_rows, count_duplicates, read_rows, spans_of, split, texts_of


def span_row(**span):
    return Row("dev.jsonl:3", {"text": "我在北京。", "spans": [span]})


def test_lines_keep_their_numbers(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "一"}\n\n{"text": "二"}\n', "utf-8")
    assert [(row.where, row.data["text"]) for row in read_rows(path)] == [
        ("train.jsonl:1", "一"),
        ("train.jsonl:3", "二"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.jsonl is empty"),
        ("\n\n", "train.jsonl is empty"),
        ('{"text": "一"}\n{"text": ', "train.jsonl:2 is not JSON"),
        ('{"text": "一"}\n["二"]', "train.jsonl:2 holds a list; expected a JSON object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, message):
    path = tmp_path / "train.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(MissingFile, match=r"no\.jsonl is missing"):
        read_rows(tmp_path / "no.jsonl")


def test_rows_in_memory_are_numbered():
    assert read_rows([{"text": "一"}])[0].where == "row 1"
    with pytest.raises(DataError, match="row 2: it is a str; expected a dict"):
        read_rows([{"text": "一"}, "二"])
    with pytest.raises(DataError, match="the list of rows is empty"):
        read_rows([])


def test_a_span_is_half_open_in_code_points():
    row = Row("r", {"text": "😀é𠮷　北京", "spans": [{"start": 4, "stop": 6, "label": "地", "text": "北京"}]})
    assert spans_of(row) == [(4, 6, "地")]


@pytest.mark.parametrize(
    ("start", "stop", "text", "message"),
    [
        (2, 3, "北京", "2:3 is '北', but its text says '北京'; its end is inclusive"),
        (1, 3, "北京", "1:3 is '在北', but its text says '北京'; that text begins at 2"),
        (1, 3, "上海", "but its text says '上海'$"),
        (2, 2, None, "2:2 is not in the text of 5 characters; are its ends inclusive"),
        (3, 6, None, "3:6 is not in the text of 5 characters"),
        (-1, 2, None, "-1:2 is not in the text"),
        ("2", 4, None, "needs whole numbers"),
    ],
)
def test_a_span_that_disagrees_with_its_text_is_refused(start, stop, text, message):
    with pytest.raises(DataError, match=rf"^dev.jsonl:3: .*{message}"):
        spans_of(span_row(start=start, stop=stop, label="地", text=text))


def test_a_span_without_an_end_is_refused():
    with pytest.raises(DataError, match=r"'spans' holds .*; expected"):
        spans_of(span_row(start=2, label="地"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"txt": "一"}, "'text' is missing; expected a string"),
        ({"text": 1}, "'text' is 1; expected a string"),
        ({"text": "　 \n"}, "'text' is empty"),
        ({"a": "一"}, "'b' is missing"),
    ],
)
def test_a_row_without_a_text_is_refused(data, message):
    with pytest.raises(DataError, match=f"^here: {message}"):
        texts_of(Row("here", data))


def test_half_a_character_is_refused():
    with pytest.raises(PromptError, match="'text' of here holds the lone surrogate"):
        texts_of(Row("here", {"text": "a\ud800"}))


def test_items_become_rows():
    rows = as_rows(["一", ("二", "三"), {"text": "四"}])
    assert [texts_of(row) for row in rows] == [("一",), ("二", "三"), ("四",)]
    with pytest.raises(DataError, match="text 2 is a int; expected a text, a pair"):
        list(as_rows(["一", 2]))


def rows_of(*texts):
    return [Row(f"row {number}", {"text": text}) for number, text in enumerate(texts)]


def test_duplicates_are_counted():
    rows = rows_of("一", "二", "一", "一")
    assert count_duplicates(rows) == 2
    assert count_duplicates(rows_of("一", "三", "一"), rows) == 2


@pytest.mark.parametrize("seed", range(20))
def test_a_split_keeps_equal_texts_together(seed):
    rows = rows_of(*"一二三四五六七八九十" * 3, "百")
    train, dev = split(rows, 0.2, seed=seed)
    assert {texts_of(row) for row in train}.isdisjoint(texts_of(row) for row in dev)
    assert sorted(row.where for row in train + dev) == sorted(row.where for row in rows)
    assert 6 <= len(dev) <= 8
    assert (train, dev) == split(rows, 0.2, seed=seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_rare_label_stays_in_the_training_rows_and_swapped_pairs_on_one_side(seed):
    rows = [Row(f"row {n}", {"text": str(n // 2), "label": "rare" if n < 2 else "other"}) for n in range(12)]
    train, dev = split(rows, 0.3, labels=lambda row: [row.data["label"]], seed=seed)
    assert {row.data["label"] for row in train} == {"rare", "other"} and len(dev) == 4
    pairs = [Row("", {"a": a, "b": b}) for a, b in ("天地", "地天", "玄黄", "宇宙")]
    train, dev = ({texts_of(row) for row in side} for side in split(pairs, 0.4, seed=seed))
    assert train.isdisjoint((b, a) for a, b in dev)
    assert count_duplicates(pairs) == 1


def test_the_only_rows_of_all_labels_are_held_out_where_there_are_no_others():
    rows = [Row("", {"text": text, "label": text}) for text in "天地"]
    assert [len(side) for side in split(rows, 0.5, labels=lambda row: [row.data["label"]])] == [1, 1]


def test_too_few_rows_are_not_split():
    with pytest.raises(DataError, match="3 rows with 1 different texts are too few"):
        split(rows_of("一", "一", "一"), 0.5)
    with pytest.raises(DataError, match="the share held out is 1"):
        split(rows_of("一", "二"), 1)


def test_json_lines_written_by_python_are_read(tmp_path):
    data = [{"text": "他说“好”\u2028。", "label": "好"}, {"text": "\U0002a6d6", "label": "字"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data), "utf-8")
    assert [row.data for row in read_rows(path)] == data


@pytest.mark.parametrize("format", [None, "rows", "doccano"])
def test_a_key_given_twice_is_refused(format, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "天", "label": "a"}\n{"text": "地", "label": "a", "label": "b"}\n', "utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2 holds 'label' twice"):
        read_data(path, format=format)
