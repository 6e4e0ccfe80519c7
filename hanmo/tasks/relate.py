"""Find relations between two spans of a text.

    {"text", "spans": [{"start", "stop", "label"}], "relations": [{"subject": 0, "object": 1, "label"}]}
    {"text", "triples": [["subject", "predicate", "object"]]}
    → {"spans": [{"start", "stop", "label", "text"}], "relations": [{"subject", "object", "label", "score"}]}

"subject" and "object" are numbers of "spans", from 0, whose labels are not learned. A triple's strings are bound to
their first occurrences in the text, as bert4keras does. The score of head "gplinker" is the least of the pair's four,
that of "casrel" the least probability. Option "head_size", of "gplinker".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hanmo.config import ModelConfig
from hanmo.tasks.casrel import (
    OBJECT_POWER,
    SUBJECT_POWER,
    CasRel,
    casrel_loss,
    casrel_targets,
    object_pairs,
    subject_logits,
    subject_pairs,
)
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.divergence import Logits
from hanmo.tasks.pointer import GPLinker, Pair, decode_triples, linker_loss, pair_array
from hanmo.tasks.pointer_task import Item, ItemTask
from hanmo.tasks.rows import Row, spans_of, texts_of
from hanmo.tasks.task import Arrays, Batch, Example, Result, TaskNetwork
from hanmo.tasks.windows import Window
from hanmo.tokenizers.protocol import Tokenizer

_SUBJECTS = 64  # of CasRel, computed together

Found = list[tuple[Pair, int, Pair, float]]


class Relation(NamedTuple):
    """A relation of two spans (start, stop) in code points."""

    label: str
    subject: tuple[int, int]
    object: tuple[int, int]


class Relate(ItemTask):
    """kind "relate"."""

    heads = ("gplinker", "casrel")
    noun = "relations"
    padding: ClassVar[dict[str, int]] = {"subjects": -1}

    def __init__(self, config: TaskConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.casrel = config.head == "casrel"
        self.calibrated = not self.casrel

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        texts_of(row)
        relations_of(row)

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        return [relation.label for relation in relations_of(row)]

    @classmethod
    def groups(cls, row: Row) -> Iterable[Sequence[tuple[int, int]]]:
        return [relation[1:] for relation in relations_of(row)]

    def notes(self, examples: Sequence[Example]) -> list[str]:
        triples = [(ex.row.data["text"], each) for ex in examples for each in triples_of(ex.row)]
        several = sum(any(text.find(part, text.find(part) + 1) >= 0 for part in each[::2]) for text, each in triples)
        missing = sum(example.row.data.get("missing", 0) for example in examples)
        notes = super().notes(examples)
        if several:
            notes.append(
                f"{several:,} triples have a string that occurs in their text again; the first occurrence is taken"
            )
        if missing:
            notes.append(f"{missing:,} triples have a string that is not in their text, and are left out")
        return notes

    def target(self, example: Example, window: Window) -> Arrays:
        found = []
        for label, *group in relations_of(example.row):
            if places := self.places(example, window, group):
                found.append((self.number[label], places[0], places[1]))
        count = len(self.config.labels)
        if self.casrel:
            return casrel_targets(found, len(window), count)
        first: list[set[Pair]] = [set() for _ in range(count)]
        last: list[set[Pair]] = [set() for _ in range(count)]
        for number, subject, other in found:
            first[number].add((subject[0], other[0]))
            last[number].add((subject[1], other[1]))
        spans = [{subject for _, subject, _ in found}, {other for _, _, other in found}]
        return {"spans": pair_array(spans), "first": pair_array(first), "last": pair_array(last)}

    def head(self, config: ModelConfig) -> nn.Module:
        if self.casrel:
            return CasRel(config, len(self.config.labels))
        return GPLinker(config.main.hidden_size, 2, len(self.config.labels), head_size=self.head_size, upper=False)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        if self.casrel:
            return casrel_loss(outputs[0].float(), outputs[1].float(), batch, weights=self.weights)
        return linker_loss(outputs, batch, links=self.weights)

    def logits(self, outputs: Any, batch: Batch) -> Sequence[Logits]:
        if self.casrel:  # of the subjects: those of objects depend on which these are
            return [Logits(subject_logits(outputs[0].float()), "bernoulli", batch["mask"])]
        return super().logits(outputs, batch)

    def infer(self, network: TaskNetwork, batch: Batch) -> list[Found]:
        outputs, texts = network(batch), batch["text"].tolist()
        if self.casrel:
            return _infer_casrel(network.head, outputs[0], outputs[2], texts)
        rows = zip(*(scores.float() for scores in outputs), texts, strict=True)
        return [
            decode_triples(*scores, above=self.floor, start=start, stop=stop, limit=stop - start)
            for *scores, (start, stop) in rows
        ]

    def located(self, example: Example, number: int, found: tuple[Pair, int, Pair, float]) -> tuple[Item, float] | None:
        subject, predicate, other, score = found
        spans = self.characters(example, number, [subject, other])
        return None if spans is None else ((self.config.labels[predicate], *spans[0], *spans[1]), score)

    @classmethod
    def true_items(cls, row: Row) -> set[Item]:
        return {cls.compared(row, (label, *subject, *other)) for label, subject, other in relations_of(row)}

    @classmethod
    def compared(cls, row: Row, item: Item) -> Item:
        if "triples" not in row.data:
            return item
        text, (label, *ends) = row.data["text"], item
        return label, text[ends[0] : ends[1]], text[ends[2] : ends[3]]

    @classmethod
    def found_items(cls, row: Row, result: Result) -> set[Item]:
        places = [(span["start"], span["stop"]) for span in result["spans"]]
        return {
            cls.compared(row, (each["label"], *places[each["subject"]], *places[each["object"]]))
            for each in result["relations"]
        }

    def make_result(self, text: str, items: Mapping[Item, float]) -> Result:
        places = sorted({span for _, a, b, c, d in items for span in ((a, b), (c, d))})
        spans = [{"start": a, "stop": b, "label": "entity", "text": text[a:b]} for a, b in places]
        relations = [
            {"subject": places.index((a, b)), "object": places.index((c, d)), "label": label, "score": score}
            for (label, a, b, c, d), score in items.items()
        ]
        relations.sort(key=lambda each: (each["subject"], each["object"], each["label"]))
        return {"spans": spans, "relations": relations}


def _infer_casrel(head: nn.Module, logits: Tensor, hidden: Tensor, texts: Sequence[tuple[int, int]]) -> list[Found]:
    assert isinstance(head, CasRel)
    odds = (logits.float().sigmoid() ** SUBJECT_POWER).cpu().numpy()
    pairs = [
        (row, *pair)
        for row, (start, stop) in enumerate(texts)
        for pair in subject_pairs(odds[row], start=start, stop=stop)
    ]
    found: list[Found] = [[] for _ in texts]
    for at in range(0, len(pairs), _SUBJECTS):
        some = torch.tensor([pair[:3] for pair in pairs[at : at + _SUBJECTS]], device=hidden.device)
        objects = head.objects(hidden[some[:, 0]], some[:, 1:]).float().sigmoid() ** OBJECT_POWER
        for (row, one, other, odd), each in zip(pairs[at:], objects.cpu().numpy(), strict=False):
            for first, last, predicate, second in object_pairs(each, start=texts[row][0], stop=texts[row][1]):
                found[row].append(((one, other), predicate, (first, last), min(odd, second)))
    return found


# Rows


def triples_of(row: Row) -> list[tuple[str, str, str]]:
    """Return the row's (subject, predicate, object) as strings; none if it has spans and relations.

    Raises DataError for one that is not in the text.
    """
    text, found = row.get("text", str), []
    for each in row.get("triples", list, default=[]):
        if isinstance(each, Mapping):
            each = [each.get(key) for key in ("subject", "predicate", "object")]
        if not isinstance(each, Sequence) or len(each) != 3 or not all(isinstance(p, str) and p for p in each):
            raise row.error(f"'triples' holds {str(each)[:100]}; expected [subject, predicate, object], three strings")
        for part in each[::2]:
            if part not in text:
                raise row.error(f"the triple {list(each)} is not in the text, which has no {part!r}")
        found.append((each[0], each[1], each[2]))
    return found


def relations_of(row: Row) -> list[Relation]:
    """Return the row's relations, checked against its spans, or those that its triples mean.

    Raises DataError for a place outside "spans" and what `spans_of` and `triples_of` raise.
    """
    if "triples" in row.data:
        if "relations" in row.data:
            raise row.error("it has 'triples' and 'relations'; expected one of them")
        return list(_bound(row))
    spans, found = spans_of(row), []
    for each in row.get("relations", list):
        if not isinstance(each, Mapping) or not isinstance(each.get("label"), str):
            raise row.error(f'\'relations\' holds {str(each)[:100]}; expected {{"subject", "object", "label"}}')
        ends = []
        for key in ("subject", "object"):
            place = each.get(key)
            if type(place) is not int or not 0 <= place < len(spans):
                raise row.error(
                    f"{key!r} of a relation is {place!r}; expected one of the {len(spans)} spans, counted from 0"
                )
            ends.append(spans[place][:2])
        found.append(Relation(each["label"], *ends))
    return found


def _bound(row: Row) -> Iterator[Relation]:
    text = row.data["text"]
    for subject, predicate, other in triples_of(row):
        spans = [(text.find(part), text.find(part) + len(part)) for part in (subject, other)]
        yield Relation(predicate, *spans)
