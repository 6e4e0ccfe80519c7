"""Formats of other tools, read as rows; what is not of its format is refused naming the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hanmo.errors import ConfigError, DataError, MissingFile
from hanmo.tasks.annotations import NAMES
from hanmo.tasks.readers import FORMATS, read_data, recognize
from hanmo.tasks.rows import Row

TEXT = "李明在北京大学。"
SPANS = [(0, 2, "PER"), (3, 7, "ORG")]


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def lines(*objects: Any) -> str:
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)


def triples(row: Row) -> list[tuple[int, int, str]]:
    return [(span["start"], span["stop"], span["label"]) for span in row.data["spans"]]


def columns(*tags: str, sep: str = " ", text: str = TEXT) -> str:
    return "".join(f"{character}{sep}{tag}\n" for character, tag in zip(text, tags, strict=True))


BIO = ("B-PER", "I-PER", "O", "B-ORG", "I-ORG", "I-ORG", "I-ORG", "O")
BMES = ("B_PER", "E_PER", "O", "B_ORG", "M_ORG", "M_ORG", "E_ORG", "O")
STUDIO = {
    "id": 7,
    "data": {"text": TEXT},
    "annotations": [
        {
            "result": [
                {"id": "x", "type": "labels", "value": {"start": 0, "end": 2, "text": "李明", "labels": ["PER"]}},
                {"id": "y", "type": "labels", "value": {"start": 3, "end": 7, "text": "北京大学", "labels": ["ORG"]}},
            ]
        },
        {"was_cancelled": True, "result": []},
    ],
}
ENTITIES = {
    "id": 1, "text": TEXT, "relations": [],
    "entities": [
        {"id": 4, "label": "PER", "start_offset": 0, "end_offset": 2},
        {"id": 9, "label": "ORG", "start_offset": 3, "end_offset": 7},
    ],
}  # fmt: skip
SAME_SPANS = {
    "bio": ("a.txt", columns(*BIO) + "\n" + columns("O", text="。"), "columns"),
    "bio with tabs, a part of speech and line ends of Windows": (
        "a.txt",
        columns(*BIO, sep="\tn\t").replace("\n", "\r\n"),
        "columns",
    ),
    "bmes": ("a.char.bmes", columns(*BMES), "columns"),
    "bioes": ("a.bioes", columns("B-PER", "E-PER", "O", "B-ORG", "I-ORG", "I-ORG", "E-ORG", "O"), "columns"),
    "iob1": ("a.iob", "-DOCSTART- O\n\n" + columns("I-PER", "I-PER", "O", *["I-ORG"] * 4, "O"), "columns"),
    "doccano": ("a.jsonl", lines({"id": 3, "text": TEXT, "label": [[0, 2, "PER"], [3, 7, "ORG"]]}), "doccano"),
    "doccano's older name": ("a.jsonl", lines({"text": TEXT, "labels": [[0, 2, "PER"], [3, 7, "ORG"]]}), "doccano"),
    "doccano with relations": ("a.jsonl", lines(ENTITIES), "doccano"),
    "label studio": ("a.json", [STUDIO], "label-studio"),
    "label studio, short": (
        "a.json",
        [
            {
                "id": 1,
                "text": TEXT,
                "annotation_id": 2,
                "annotator": 1,
                "label": [{"start": a, "end": b, "text": TEXT[a:b], "labels": [k]} for a, b, k in SPANS],
            }
        ],
        "label-studio",
    ),
    "cluener": (
        "train.json",
        lines({"text": TEXT, "label": {"PER": {"李明": [[0, 1]]}, "ORG": {"北京大学": [[3, 6]]}}}),
        "cluener",
    ),
    "rows": ("a.jsonl", lines({"text": TEXT, "spans": [dict(start=a, stop=b, label=k) for a, b, k in SPANS]}), "rows"),
    "rows in a list": (
        "a.json",
        [{"text": TEXT, "spans": [dict(start=a, stop=b, label=k) for a, b, k in SPANS]}],
        "rows",
    ),
}


@pytest.mark.parametrize("case", SAME_SPANS)
def test_spans_of_every_format_are_the_same_rows(tmp_path, case):
    name, content, format = SAME_SPANS[case]
    path = write(tmp_path, name, content)
    assert recognize(path) == format
    for rows in (read_data(path), read_data(path, format=format)):
        assert rows[0].data["text"] == TEXT
        assert triples(rows[0]) == SPANS
        assert rows[0].where.startswith(name)


OTHER = {
    "THUCNews": (
        "cnews.train.txt",
        "体育\t湖人夺冠\n财经\t股市上涨\n体育\t国足输球\n",
        [
            {"label": "体育", "text": "湖人夺冠"},
            {"label": "财经", "text": "股市上涨"},
            {"label": "体育", "text": "国足输球"},
        ],
    ),
    "sentiment of bert4keras": (
        "sentiment.train.data",
        "很好，很满意\t1\n太差了\t0\n还行\t1\n",
        [{"text": "很好，很满意", "label": "1"}, {"text": "太差了", "label": "0"}, {"text": "还行", "label": "1"}],
    ),
    "line separators of Unicode": (
        "a.tsv",
        "text\tlabel\n天\u2028地\u0085\tA\n",
        [{"text": "天\u2028地", "label": "A"}],
    ),
    "named columns": ("train.tsv", 'label\ttext_a\n1\t他说"好\n', [{"label": "1", "text": '他说"好'}]),
    "csv": ("train.csv", 'label,review\n1,"好，""很好"""\n', [{"label": "1", "text": '好，"很好"'}]),
    "LCQMC": (
        "LCQMC.train.data",
        "喜欢打篮球\t爱打篮球\t1\n几点了\t天气好\t0\n谁\t哪个\t0\n",
        [
            {"a": "喜欢打篮球", "b": "爱打篮球", "label": "1"},
            {"a": "几点了", "b": "天气好", "label": "0"},
            {"a": "谁", "b": "哪个", "label": "0"},
        ],
    ),
    "STS-B": (
        "sts.tsv",
        "一个人\t一个男人\t4.5\n猫\t狗\t1\n马\t马匹\t4.5\n",
        [
            {"a": "一个人", "b": "一个男人", "score": 4.5},
            {"a": "猫", "b": "狗", "score": 1.0},
            {"a": "马", "b": "马匹", "score": 4.5},
        ],
    ),
    "TNEWS": (
        "train.json",
        lines({"label": "108", "label_desc": "news_edu", "sentence": "上课时学生", "keywords": ""}),
        [{"text": "上课时学生", "label": "news_edu"}],
    ),
    "IFLYTEK": (
        "train.json",
        lines({"label": "110", "label_des": "社区超市", "sentence": "朴朴快送"}),
        [{"text": "朴朴快送", "label": "社区超市"}],
    ),
    "AFQMC": (
        "train.json",
        lines({"sentence1": "蚂蚁借呗", "sentence2": "借呗", "label": "0"}),
        [{"a": "蚂蚁借呗", "b": "借呗", "label": "0"}],
    ),
    "OCNLI": (
        "train.json",
        lines(
            {"sentence1": "天", "sentence2": "地", "label": "-"},
            {"sentence1": "天", "sentence2": "空", "label": "neutral"},
        ),
        [{"a": "天", "b": "空", "label": "neutral"}],
    ),
    "a test file of CLUE": ("test.json", lines({"id": 0, "sentence": "天地"}), [{"text": "天地"}]),
    "words": (
        "msr_training.utf8",
        "“  人们  常  说\n\n生活  是\n",
        [{"words": ["“", "人们", "常", "说"]}, {"words": ["生活", "是"]}],
    ),
    "words by tags": ("cws.txt", columns("B", "E", "S", text="人们说"), [{"words": ["人们", "说"]}]),
    "doccano, one label": (
        "a.jsonl",
        lines({"id": 1, "text": "好", "label": ["正"]}, {"text": "坏", "label": ["负"]}),
        [{"text": "好", "label": "正"}, {"text": "坏", "label": "负"}],
    ),
    "doccano, several labels": (
        "a.jsonl",
        lines({"text": "好", "label": ["正", "短"]}, {"text": "坏", "label": ["负"]}),
        [{"text": "好", "labels": ["正", "短"]}, {"text": "坏", "labels": ["负"]}],
    ),
    "label studio, choices": (
        "a.json",
        [{"data": {"review": "好"}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ["正"]}}]}]}],
        [{"text": "好", "label": "正"}],
    ),
    "label studio, choices beside spans": (
        "a.json",
        [
            {
                "data": {"text": TEXT},
                "annotations": [
                    {
                        "result": [
                            STUDIO["annotations"][0]["result"][0],
                            {"type": "choices", "value": {"choices": ["正"]}},
                        ]
                    }
                ],
            },
            {"data": {"text": "好"}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ["负"]}}]}]},
        ],
        [
            {"text": TEXT, "spans": [{"start": 0, "stop": 2, "label": "PER", "text": "李明"}], "label": "正"},
            {"text": "好", "spans": [], "label": "负"},
        ],
    ),
    "label studio, a region of two labels": (
        "a.json",
        [
            {
                "data": {"text": "北京"},
                "annotations": [
                    {"result": [{"id": "x", "type": "labels", "value": {"start": 0, "end": 2, "labels": ["A", "B"]}}]}
                ],
            }
        ],
        [{"text": "北京", "spans": [{"start": 0, "stop": 2, "label": label} for label in "AB"]}],
    ),
    "label studio, hypertext": (
        "a.json",
        [
            {
                "data": {"html": "他在北京"},
                "annotations": [
                    {
                        "result": [
                            {
                                "type": "hypertextlabels",
                                "value": {
                                    "start": "/text()[1]",
                                    "end": "/text()[1]",
                                    "startOffset": 2,
                                    "endOffset": 4,
                                    "globalOffsets": {"start": 2, "end": 4},
                                    "text": "北京",
                                    "hypertextlabels": ["LOC"],
                                },
                            }
                        ]
                    }
                ],
            }
        ],
        [{"text": "他在北京", "spans": [{"start": 2, "stop": 4, "label": "LOC", "text": "北京"}]}],
    ),
    "label studio, offsets in UTF-16 units and in code points": (
        "a.json",
        [
            {
                "data": {"text": "😀北京人"},
                "annotations": [
                    {
                        "result": [
                            {"type": "labels", "value": {"start": at, "end": at + 2, "text": "北京", "labels": ["LOC"]}}
                        ]
                    }
                ],
            }
            for at in (2, 1)
        ],
        [{"text": "😀北京人", "spans": [{"start": 1, "stop": 3, "label": "LOC", "text": "北京"}]}] * 2,
    ),
    "label studio, short, with other columns": (
        "a.json",
        [
            {
                "id": 1,
                "doc_id": "d7",
                "text": "北京人",
                "source": "web",
                "annotation_id": 2,
                "annotator": "a@b.c",
                "label": [{"start": 0, "end": 2, "text": "北京", "labels": ["LOC"]}],
            }
        ],
        [{"text": "北京人", "spans": [{"start": 0, "stop": 2, "label": "LOC", "text": "北京"}]}],
    ),
    "label studio, short, without spans": (
        "a.json",
        [
            {"id": 1, "text": "好", "source": "web", "url": "x", "annotation_id": 2},
            {"text": "北京", "annotation_id": 3, "label": [{"start": 0, "end": 2, "labels": ["LOC"]}]},
        ],
        [{"text": "好", "spans": []}, {"text": "北京", "spans": [{"start": 0, "stop": 2, "label": "LOC"}]}],
    ),
    "label studio, short, a choice": (
        "a.json",
        [{"id": 1, "review": "好", "annotation_id": 2, "annotator": "a@b.c", "feeling": "正"}],
        [{"text": "好", "label": "正"}],
    ),
    "CMRC 2018": (
        "cmrc.json",
        {
            "version": "v1.0",
            "data": [
                {
                    "paragraphs": [
                        {
                            "id": "T",
                            "context": "范廷颂是主教。",
                            "qas": [
                                {
                                    "question": "谁是主教？",
                                    "id": "T_0",
                                    "answers": [{"text": "范廷颂", "answer_start": 0}],
                                }
                            ],
                        }
                    ]
                }
            ],
        },
        [{"question": "谁是主教？", "text": "范廷颂是主教。", "answers": [{"start": 0, "stop": 3, "text": "范廷颂"}]}],
    ),
    "CMRC 2018 by the datasets library": (
        "cmrc.jsonl",
        lines({"context": "范廷颂是主教。", "question": "谁？", "answers": {"text": ["范廷颂"], "answer_start": [0]}}),
        [{"question": "谁？", "text": "范廷颂是主教。", "answers": [{"start": 0, "stop": 3, "text": "范廷颂"}]}],
    ),
    "DuIE": (
        "train_data.json",
        lines(
            {
                "text": "鲁迅写了狂人日记",
                "spo_list": [{"predicate": "作者", "subject": "狂人日记", "object": "鲁迅", "object_type": "人物"}],
            }
        ),
        [{"text": "鲁迅写了狂人日记", "triples": [["狂人日记", "作者", "鲁迅"]]}],
    ),
    "DuIE 2.0": (
        "duie_train.json",
        lines(
            {
                "text": "王雪在晴天里饰林晴",
                "spo_list": [
                    {"predicate": "饰演", "subject": "王雪", "object": {"@value": "林晴", "inWork": "晴天"}},
                ],
            }
        ),
        [{"text": "王雪在晴天里饰林晴", "triples": [["王雪", "饰演", "林晴"], ["王雪", "饰演.inWork", "晴天"]]}],
    ),
    "DuIE, a string that is not in the text": (
        "train_data.json",
        lines(
            {
                "text": "鲁迅写了狂人日记",
                "spo_list": [
                    {"predicate": "作者", "subject": "狂人日记", "object": "鲁迅"},
                    {"predicate": "国籍", "subject": "鲁迅", "object": "中国"},
                ],
            }
        ),
        [{"text": "鲁迅写了狂人日记", "triples": [["狂人日记", "作者", "鲁迅"]], "missing": 1}],
    ),
    "WebQA": (
        "WebQA.json",
        [
            {
                "question": "谁写了红楼梦？",
                "id": "Q",
                "passages": [{"answer": "曹雪芹", "passage": "曹雪芹写了红楼梦"}, {"answer": "", "passage": "无关"}],
            }
        ],
        [
            {"question": "谁写了红楼梦？", "text": "曹雪芹写了红楼梦", "answers": ["曹雪芹"]},
            {"question": "谁写了红楼梦？", "text": "无关", "answers": []},
        ],
    ),
}


def test_relations_point_to_spans_by_their_place(tmp_path):
    linked = ENTITIES | {"relations": [{"id": 1, "from_id": 9, "to_id": 4, "type": "校友"}]}
    result = [
        *STUDIO["annotations"][0]["result"],
        {"type": "relation", "from_id": "y", "to_id": "x", "labels": ["校友"]},
    ]
    for path in (
        write(tmp_path, "a.jsonl", lines(linked)),
        write(tmp_path, "b.json", [STUDIO | {"annotations": [{"result": result}]}]),
    ):
        row = read_data(path)[0]
        assert triples(row) == SPANS
        assert row.data["relations"] == [{"subject": 1, "object": 0, "label": "校友"}]


@pytest.mark.parametrize("case", OTHER)
def test_other_formats_become_rows(tmp_path, case):
    name, content, expected = OTHER[case]
    assert [row.data for row in read_data(write(tmp_path, name, content))] == expected


def test_a_folder_has_a_folder_of_texts_for_each_label(tmp_path):
    for label, text in (("体育", "湖人夺冠"), ("财经", "股市")):
        (tmp_path / label).mkdir()
        write(tmp_path / label, "0.txt", text + "\n")
    rows = read_data(tmp_path)
    assert [row.data for row in rows] == [{"text": "湖人夺冠", "label": "体育"}, {"text": "股市", "label": "财经"}]
    assert rows[0].where == "体育/0.txt"


def test_a_folder_without_texts_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"no file LABEL/NAME\.txt is in .*; expected a folder of texts for each label"):
        read_data(tmp_path)


def test_a_first_line_may_name_the_columns_in_chinese(tmp_path):
    path = write(tmp_path, "a.csv", "标签,文本\n甲,天地\n乙,玄黄\n")
    assert [row.data for row in read_data(path)] == [{"label": "甲", "text": "天地"}, {"label": "乙", "text": "玄黄"}]


def test_offsets_count_code_points_of_the_text(tmp_path):
    text = "😀　ＡＢé𠮷野"
    tags = ["O", "O", "B-X", "I-X", "O", *["O"] * (len(text) - 6), "B-Y"]
    row = read_data(write(tmp_path, "a.txt", columns(*tags, text=text)))[0]
    assert row.data["text"] == text
    assert [text[start:stop] for start, stop, _ in triples(row)] == ["ＡＢ", text[-1]]


def test_latin_words_of_columns_have_spaces_between_them(tmp_path):
    row = read_data(write(tmp_path, "a.txt", "我 O\n爱 O\nNew B-LOC\nYork I-LOC\n城 I-LOC\nB O\nO O\n"))[0]
    assert row.data["text"] == "我爱New York城BO"
    assert triples(row) == [(2, 11, "LOC")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt is empty"),
        ("a.jsonl", "", r"a\.jsonl is empty"),
        ("a.csv", "", r"a\.csv is empty"),
        ("a.json", "[]", r"a\.json is empty"),
        ("a.txt", "天地玄黄\n", r"the format of .*a\.txt is not known; name it by format, one of rows, columns"),
        ("a.txt", "天 O\n地\n", r"the format of .*a\.txt is not known"),
        ("a.txt", "天 O\n" * 60 + "地\n", r"^a\.txt:61: the line is '地'; expected a token and its tag"),
        ("a.txt", "天 O\n" * 60 + "地 X-LOC\n", r"^a\.txt:61: the tag is 'X-LOC'; expected O, or B-, "),
        ("a.txt", "天 B\n地 O\n", r"^a\.txt:1: a tag names no label; expected B-LABEL"),
        ("a.tsv", "好\t1\n坏\t0\t2\n差\t0\n", r"^a\.tsv:2: it has 3 columns, the first line has 2"),
        ("a.tsv", "好\t1\n", r"^a\.tsv:1: columns are not named; begin with a line such as text, label"),
        ("a.tsv", "text\tscore\n好\tx\n", r"^a\.tsv:2: 'score' is 'x'; expected a number"),
        ("a.jsonl", '{"text": "天"}\n[1]\n', r"^a\.jsonl:2 holds a list; expected a JSON object"),
        ("a.json", "[1]", r"^a\.json, item 1 is '1'; expected a JSON object"),
        (
            "train.json",
            lines({"text": TEXT, "label": {"ORG": {"北京大学": [[3, 7]]}}}),
            r"^train\.json:1: the span 3:8 is '北京大学。', but its text says '北京大学'",
        ),
        (
            "a.jsonl",
            lines({"text": TEXT, "spans": [{"start": 3, "stop": 6, "label": "ORG", "text": "北京大学"}]}),
            r"^a\.jsonl:1: the span 3:6 is '北京大', but .*; its end is inclusive, expected one past",
        ),
        (
            "a.jsonl",
            lines({"text": "😀😀北京", "spans": [{"start": 4, "stop": 6, "label": "ORG", "text": "北京"}]}),
            r"^a\.jsonl:1: the span 4:6 is not in the text of 4 characters",
        ),
        (
            "a.jsonl",
            lines({"text": "😀北京人", "spans": [{"start": 2, "stop": 4, "label": "ORG", "text": "北京"}]}),
            r"its ends count UTF-16 units, expected code points",
        ),
        ("a.jsonl", lines({"text": "北京", "label": [[1, 1, "ORG"]]}), r"^a\.jsonl:1: .*are its ends inclusive\?"),
        (
            "a.jsonl",
            lines({"text": "北京", "label": [[1, 2]]}),
            r"^a\.jsonl:1: 'label' is \[\[1, 2\]\]; expected a list of",
        ),
        ("a.json", [STUDIO | {"annotations": []}], r"^a\.json, item 1: it has no annotation"),
        (
            "a.json",
            [STUDIO | {"annotations": [{"result": []}, *STUDIO["annotations"]]}],
            r"^a\.json, item 1: it has 2 annotations that differ; keep the one that is right",
        ),
        (
            "a.json",
            [STUDIO | {"annotations": [{"result": [{"type": "textarea", "value": {"text": ["x"]}}]}]}],
            r"^a\.json, item 1: a result has the type 'textarea'; expected labels, hypertextlabels, choices",
        ),
        (
            "a.json",
            [STUDIO | {"data": {"id": "d7", "review": TEXT}}],
            r"^a\.json, item 1: it has no text; expected it as 'text', or as the only string of the data",
        ),
        (
            "a.json",
            [{"id": 1, "annotation_id": 2, "source": "web", "review": "好", "topics": {"choices": ["正"]}}],
            r"^a\.json, item 1: JSON-MIN does not say which of source, review is the text; name it 'text', or export",
        ),
        (
            "a.json",
            [{"id": 1, "annotation_id": 2, "source": "web", "review": "好", "feeling": "正"}],
            r"^a\.json, item 1: JSON-MIN does not say which of source, review, feeling is the text",
        ),
        (
            "a.jsonl",
            lines(ENTITIES | {"relations": [{"id": 1, "from_id": 4, "to_id": 5, "type": "读"}]}),
            r"^a\.jsonl:1: a relation '读' is from 4 to 5; expected ids of its spans",
        ),
    ],
)
def test_what_is_not_of_its_format_is_refused_naming_the_line(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_data(write(tmp_path, name, content))


JUNK = [None, 5, "x", [], {}, [[1]], [{}], {"": []}, True]


def mutated(value: Any) -> Iterator[Any]:
    """Yield copies of a JSON value, each with junk in one place, or without one key."""
    yield from JUNK
    if isinstance(value, dict):
        for key in value:
            yield {name: each for name, each in value.items() if name != key}
            yield from (value | {key: other} for other in mutated(value[key]))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]] for other in mutated(each))


@pytest.mark.parametrize("format", NAMES)
def test_damaged_objects_are_refused_or_read_and_never_crash(tmp_path, format):
    cases = [content for _, content, kind in SAME_SPANS.values() if kind == format]
    cases += [content for name, content, _ in OTHER.values() if recognize(write(tmp_path, name, content)) == format]
    refused = 0
    for content in cases:
        objects = [json.loads(line) for line in content.splitlines()] if isinstance(content, str) else content
        for other in mutated(objects):
            path = write(tmp_path, "damaged.json", other)
            try:
                assert isinstance(read_data(path, format=format), list)
            except DataError:
                refused += 1
    assert refused > 20


def test_a_file_that_is_not_utf_8_names_the_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("天 O\n地 O\n".encode("gbk"))
    with pytest.raises(DataError, match=r"^a\.txt:1: it is not UTF-8"):
        read_data(tmp_path / "a.txt")


def test_an_unknown_format_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="format is 'conll'; expected one of rows, columns"):
        read_data(tmp_path, format="conll")
    with pytest.raises(MissingFile, match=r"none\.txt is missing"):
        read_data(tmp_path / "none.txt")


def test_every_format_is_in_a_case(tmp_path):
    seen = {format for _, _, format in SAME_SPANS.values()} | {"folders"}
    seen |= {recognize(write(tmp_path, name, content)) for name, content, _ in OTHER.values()}
    assert seen == set(FORMATS)
