"""JSON of annotation tools and of Chinese benchmarks, converted object by object to rows.

    doccano         {"text", "label": [[start, stop, label]]} or [label], {"text", "entities", "relations"}
    label-studio    {"data": {"text"}, "annotations": [{"result": […]}]}, and the short form JSON-MIN
    cluener         {"text", "label": {label: {text: [[first, last]]}}}: inclusive ends
    clue            {"sentence" | "sentence1", "sentence2", "label"}: TNEWS, IFLYTEK, AFQMC, LCQMC, CMNLI, OCNLI
    squad           {"data": [{"paragraphs": [{"context", "qas"}]}]}: CMRC 2018, DRCD
    webqa           {"question", "passages": [{"passage", "answer"}]}: WebQA and SogouQA
    duie            {"text", "spo_list": [{"subject", "predicate", "object"}]}

Knows no files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hanmo.errors import DataError
from hanmo.tasks.rows import Row, utf16_part

Data = Mapping[str, Any]
Span = dict[str, Any]

_SPANS = ("labels", "hypertextlabels")  # types of Label Studio's results that are spans, and their keys
_OF_STUDIO = ("annotator", "created_at", "updated_at")  # strings of JSON-MIN that are neither data nor labels


def convert(rows: Iterable[Row], name: str) -> Iterator[Row]:
    """Convert the objects of a file in the format of this name.

    Raises DataError naming the object that is not of the format.
    """
    found: list[Row] = []
    for row in rows:
        try:
            found += _CONVERTERS[name](row)
        except DataError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a value of another type than the format's
            raise row.error(f"it is no object of the format {name}: {type(error).__name__}, {error}") from None
    return _alike(found)


def recognize(data: Data) -> str:
    """Return the name of the format that the first object of a file has, "rows" if it is of no other tool."""
    label = data.get("label", data.get("labels"))
    for name, found in (
        ("duie", "spo_list" in data),
        ("label-studio", "annotations" in data or "annotation_id" in data),
        ("webqa", "passages" in data),
        ("squad", isinstance(data.get("data"), list) or {"qas", "paragraphs", "context"} & set(data)),
        ("clue", "sentence" in data or "sentence1" in data),
        ("cluener", isinstance(label, dict)),
        ("doccano", "entities" in data or (isinstance(label, list) and "label" in data)),
        ("doccano", isinstance(label, list) and any(isinstance(each, list) for each in label)),
    ):
        if found:
            return name
    return "rows"


def _doccano(row: Row) -> Iterator[Row]:
    text = row.get("text", str)
    if "entities" in row.data:
        yield _entities(row, text)
        return
    labels = row.get("label" if "label" in row.data else "labels", list)
    if labels and all(isinstance(each, str) for each in labels):
        yield Row(row.where, {"text": text, "labels": labels})
    elif all(isinstance(each, list) and len(each) == 3 for each in labels):
        yield Row(row.where, {"text": text, "spans": [_span(*each) for each in labels]})
    else:
        raise row.error(f"'label' is {str(labels)[:100]}; expected a list of [start, stop, label], or of labels")


def _entities(row: Row, text: str) -> Row:
    spans = []
    for entity in _dicts(row, row.get("entities", list), "entities", "id", "label", "start_offset", "end_offset"):
        spans.append((entity["id"], _span(entity["start_offset"], entity["end_offset"], entity["label"])))
    links = _dicts(row, row.get("relations", list, default=[]), "relations", "from_id", "to_id", "type")
    triples = [(each["from_id"], each["type"], each["to_id"]) for each in links]
    return _with_relations(row, text, spans, triples)


def _label_studio(row: Row) -> Iterator[Row]:
    yield _label_studio_full(row) if "data" in row.data else _label_studio_min(row)


def _label_studio_full(row: Row) -> Row:
    done = [each for each in _dicts(row, row.get("annotations", list), "annotations") if not each.get("was_cancelled")]
    if not done:
        raise row.error("it has no annotation; export the annotated tasks only")
    if any(each.get("result") != done[0].get("result") for each in done):
        raise row.error(f"it has {len(done)} annotations that differ; keep the one that is right")
    text, spans, triples, choices = _text(row, row.get("data", dict)), list[tuple[Any, Span]](), [], list[str]()
    rated = False
    for result in _dicts(row, done[0].get("result", []), "result", "type"):
        kind, value = result["type"], result.get("value", {})
        if kind in _SPANS:
            spans += [(result.get("id", len(spans)), span) for span in _spans(value, kind)]
        elif kind == "choices":
            choices, rated = [*choices, *value["choices"]], True
        elif kind == "relation":
            for label in result.get("labels") or ["related"]:
                triples.append((result.get("from_id"), label, result.get("to_id")))
        else:
            expected = f"{', '.join(_SPANS)}, choices or relation"
            raise row.error(f"a result has the type {str(kind)[:100]!r}; expected {expected}, so leave it out")
    spans = list(zip([id for id, _ in spans], _in_code_points(text, [span for _, span in spans]), strict=True))
    made = _with_relations(row, text, spans, triples)
    if not rated:
        return made
    labels = {"labels": choices}
    return Row(row.where, {**made.data, **labels} if spans else {"text": text, **labels})


def _label_studio_min(row: Row) -> Row:
    """Convert JSON-MIN, in which keys of the data and names of the labelling interface are beside one another."""
    spans, labels = list[Span](), list[str]()
    strings = [key for key, value in row.data.items() if isinstance(value, str) and key not in _OF_STUDIO]
    for value in row.data.values():
        if isinstance(value, list) and value and all(isinstance(each, dict) and "start" in each for each in value):
            for each in value:
                spans += _spans(each, next((kind for kind in _SPANS if kind in each), _SPANS[0]))
        elif isinstance(value, dict) and isinstance(value.get("choices"), list):
            labels += value["choices"]
    named = "text" if "text" in row.data or not strings else strings[0]
    text, others = _text(row, {"text": row.data.get(named)}), [key for key in strings if key != named]
    chosen = [row.data[key] for key in others if not spans and not labels]
    if named != "text" and len(others) > min(1, len(chosen)):
        listed = ", ".join(strings)
        raise row.error(f"JSON-MIN does not say which of {listed} is the text; name it 'text', or export as JSON")
    if len(chosen) == 1:  # several may be data
        labels = chosen
    found: dict[str, Any] = {"text": text, "labels": labels} if labels else {"text": text}
    return Row(row.where, found | {"spans": _in_code_points(text, spans)} if spans or not labels else found)


def _spans(value: Any, kind: str) -> list[Span]:
    """Return a span for each label of a region.

    Of hypertext, whose ends are places in elements, the global offsets are taken, which its text has to confirm.
    """
    plain = type(value["start"]) is int
    ends, text = (value, value.get("text")) if plain else (value["globalOffsets"], value["text"])
    return [_span(ends["start"], ends["end"], label, text) for label in value[kind]]


def _in_code_points(text: str, spans: list[Span]) -> list[Span]:
    """Return spans in code points; releases of Label Studio before the end of 2021 counted UTF-16 units.

    They are taken for that if the texts of the spans agree with units alone.
    """
    said = [span for span in spans if isinstance(span.get("text"), str) and type(span["stop"]) is int]
    if all(text[span["start"] : span["stop"]] == span["text"] for span in said):
        return spans
    if any(utf16_part(text, span["start"], span["stop"]) != span["text"] for span in said):
        return spans
    return [{**span, **{end: len(utf16_part(text, 0, span[end])) for end in ("start", "stop")}} for span in spans]


def _cluener(row: Row) -> Iterator[Row]:
    spans = []
    for label, places in row.get("label", dict, default={}).items():
        for text, ends in places.items() if isinstance(places, dict) else ():
            spans += [_span(first, last + 1 if type(last) is int else last, label, text) for first, last in ends]
    yield Row(row.where, {"text": row.get("text", str), "spans": spans})


def _clue(row: Row) -> Iterator[Row]:
    label = row.data.get("label_desc", row.data.get("label_des", row.data.get("label")))
    if label == "-":  # of CMNLI and OCNLI: annotators did not agree
        return
    names = {"sentence": "text", "sentence1": "a", "sentence2": "b"}
    made = {name: row.get(key, str) for key, name in names.items() if key in row.data}
    yield Row(row.where, made if label is None else made | {"label": str(label)})


def _squad(row: Row) -> Iterator[Row]:
    articles = row.get("data", list, default=[row.data])
    for article in _dicts(row, articles, "data"):
        for passage in _dicts(row, article.get("paragraphs", [article]), "paragraphs"):
            text = passage.get("context", passage.get("context_text"))
            for asked in _dicts(row, passage.get("qas", [passage]), "qas"):
                where = f"{row.where}, question {asked.get('id', asked.get('query_id'))}"
                question, answers = asked.get("question", asked.get("query_text")), asked.get("answers", [])
                if isinstance(answers, dict):  # of the datasets library: a list of each key
                    given = (answers.get("text", []), answers.get("answer_start", []))
                    answers = [{"text": each, "answer_start": start} for each, start in zip(*given, strict=False)]
                yield Row(where, _reading(question, text, answers))


def _webqa(row: Row) -> Iterator[Row]:
    question = row.get("question", str)
    for passage in _dicts(row, row.get("passages", list), "passages", "passage"):
        answer = passage.get("answer", "")
        yield Row(row.where, _reading(question, passage["passage"], [answer] if answer else []))


def _reading(question: Any, text: Any, answers: Iterable[Any]) -> dict[str, Any]:
    return {"question": question, "text": text, "answers": [_answer(each) for each in answers]}


def _answer(answer: Any) -> Any:
    """Give the answer its place if the file does; its string alone may be anywhere in the passage."""
    if not isinstance(answer, dict):
        return answer
    text, start = answer.get("text"), answer.get("answer_start")
    return (
        {"start": start, "stop": start + len(text), "text": text}
        if isinstance(text, str) and type(start) is int
        else text
    )


def _duie(row: Row) -> Iterator[Row]:
    text, triples, missing = row.get("text", str), [], 0
    for each in _dicts(row, row.get("spo_list", list, default=[]), "spo_list", "subject", "predicate", "object"):
        objects = each["object"] if isinstance(each["object"], dict) else {"@value": each["object"]}
        for part, found in objects.items():  # of DuIE 2.0: "@value" and further parts, such as "inWork"
            label = each["predicate"] if part == "@value" else f"{each['predicate']}.{part}"
            if any(isinstance(end, str) and end not in text for end in (each["subject"], found)):
                missing += 1  # as bert4keras does, it is left out
            else:
                triples.append([each["subject"], label, found])
    yield Row(row.where, {"text": text, "triples": triples} | ({"missing": missing} if missing else {}))


def _with_relations(
    row: Row, text: str, spans: Sequence[tuple[Any, Span]], triples: Iterable[tuple[Any, str, Any]]
) -> Row:
    """Make a row of spans after their ids, which relations name; of several spans with an id the first is meant."""
    found, numbers = [], dict[Any, int]()
    for number, (id, _) in enumerate(spans):
        numbers.setdefault(id, number)
    for subject, label, target in triples:
        if subject not in numbers or target not in numbers:
            raise row.error(f"a relation {label!r} is from {subject!r} to {target!r}; expected ids of its spans")
        found.append({"subject": numbers[subject], "object": numbers[target], "label": label})
    made: dict[str, Any] = {"text": text, "spans": [span for _, span in spans]}
    return Row(row.where, made | {"relations": found} if found else made)


def _span(start: Any, stop: Any, label: Any, text: Any = None) -> Span:
    made = {"start": start, "stop": stop, "label": label}
    return made if text is None else made | {"text": text}


def _text(row: Row, data: Data) -> str:
    strings = [value for value in data.values() if isinstance(value, str)]
    text = data.get("text", strings[0] if len(strings) == 1 else None)
    if not isinstance(text, str):
        raise row.error("it has no text; expected it as 'text', or as the only string of the data")
    return text


def _dicts(row: Row, found: Any, key: str, *keys: str) -> list[dict[str, Any]]:
    if not isinstance(found, list):
        raise row.error(f"{key!r} is {str(found)[:100]!r}; expected a list")
    for each in found:
        if not isinstance(each, dict) or not set(keys) <= set(each):
            raise row.error(f"{key!r} holds {str(each)[:100]}; expected an object with {', '.join(keys) or 'keys'}")
    return found


def _alike(rows: Sequence[Row]) -> Iterator[Row]:
    """Give rows with "labels" their only label as "label", if no row of the file has several or none.

    A row without "spans" gets an empty list if another row has some.
    """
    single = all(len(row.data["labels"]) == 1 for row in rows if "labels" in row.data)
    spans: dict[str, Any] = {"spans": []} if any(row.data.get("spans") for row in rows) else {}
    for row in rows:
        data = {**spans, **row.data}
        if single and "labels" in data:
            data["label"] = data.pop("labels")[0]
        yield Row(row.where, data)


_CONVERTERS: dict[str, Callable[[Row], Iterator[Row]]] = {
    "doccano": _doccano,
    "label-studio": _label_studio,
    "cluener": _cluener,
    "clue": _clue,
    "squad": _squad,
    "webqa": _webqa,
    "duie": _duie,
}
NAMES = tuple(_CONVERTERS)
