"""Find events: a trigger and the arguments that take part, by GPLinker over roles (kexue.fm/archives/8926).

    {"text", "events": [{"label", "trigger": {"start", "stop"}, "arguments": [{"start", "stop", "label"}]}]}

"label" of an argument is its role. The result has these keys, and "text" and "score" of each span. An event is a set
of spans that are all linked to one another. The labels of the task are the events' and "event|role" of arguments.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hanmo.config import ModelConfig
from hanmo.tasks.config import TaskConfig
from hanmo.tasks.pointer import GPLinker, Pair, best_pairs, linker_loss, pair_array
from hanmo.tasks.pointer_task import Item, PointerTask
from hanmo.tasks.rows import Row, spans_of, texts_of
from hanmo.tasks.scores import set_scores
from hanmo.tasks.task import Arrays, Batch, Example, Result, TaskNetwork
from hanmo.tasks.windows import Window

_ROLE = "|"

Span = tuple[int, int, str]
Found = tuple[list[tuple[int, int, int, float]], list[set[int]]]
"""(label, first, last, score) of the spans of a window, and the numbers of those that each is linked to."""


class Event(NamedTuple):
    """A kind of event, and its spans (start, stop, label of the task), that of the trigger first if it has one."""

    label: str
    spans: tuple[Span, ...]


class Events(PointerTask):
    """kind "events"."""

    heads = ("gplinker",)
    noun = "events"

    @classmethod
    def check(cls, row: Row, config: TaskConfig) -> None:
        texts_of(row)
        events_of(row)

    @classmethod
    def labels_of(cls, row: Row, config: TaskConfig) -> Iterable[str]:
        return [label for event in events_of(row) for _, _, label in event.spans]

    @classmethod
    def groups(cls, row: Row) -> Iterable[Sequence[tuple[int, int]]]:
        return [[span[:2] for span in event.spans] for event in events_of(row)]

    def target(self, example: Example, window: Window) -> Arrays:
        spans: list[set[Pair]] = [set() for _ in self.config.labels]
        first: set[Pair] = set()
        last: set[Pair] = set()
        for event in events_of(example.row):
            found = [
                (self.number[label], *places[0])
                for start, stop, label in event.spans
                if (places := self.places(example, window, [(start, stop)]))
            ]
            for number, one in enumerate(found):
                spans[one[0]].add(one[1:])
                for other in found[number + 1 :]:
                    first.add((min(one[1], other[1]), max(one[1], other[1])))
                    last.add((min(one[2], other[2]), max(one[2], other[2])))
        return {"spans": pair_array(spans), "first": pair_array([first]), "last": pair_array([last])}

    def head(self, config: ModelConfig) -> GPLinker:
        return GPLinker(config.main.hidden_size, len(self.config.labels), 1, head_size=self.head_size, upper=True)

    def losses(self, outputs: Any, batch: Batch) -> Tensor:
        return linker_loss(outputs, batch, spans=self.weights)

    def infer(self, network: TaskNetwork, batch: Batch) -> list[Found]:
        rows = zip(*(scores.float() for scores in network(batch)), batch["text"].tolist(), strict=True)
        return [self._links(spans, first[0], last[0], *text) for spans, first, last, text in rows]

    def _links(self, spans: Tensor, first: Tensor, last: Tensor, start: int, stop: int) -> Found:
        limits = self.config.thresholds
        found = [
            each
            for each in best_pairs(spans, above=self.floor, start=start, stop=stop, limit=stop - start)
            if each[3] > limits.get(self.config.labels[each[0]], 0.0)
        ]
        if not found:
            return [], []
        linked = torch.ones(len(found), len(found), dtype=torch.bool, device=spans.device)
        for scores, column in ((first, 1), (last, 2)):
            places = torch.tensor([each[column] for each in found], device=spans.device)
            linked &= scores[places.minimum(places[:, None]), places.maximum(places[:, None])] > 0
        rows = linked.tolist()
        return found, [{n for n, yes in enumerate(row) if yes and n != own} for own, row in enumerate(rows)]

    def decode(self, example: Example, outputs: Sequence[Found]) -> Result:
        found: dict[frozenset[Span], list[tuple[Span, float]]] = {}
        for number, (spans, links) in enumerate(outputs):
            length = len(example.windows[number])
            for kind in sorted({self._kind(span[0]) for span in spans}):
                own = {n for n, span in enumerate(spans) if self._kind(span[0]) == kind}
                for clique in islice(cliques(own, links), length):
                    chosen = [spans[n] for n in sorted(clique)]
                    places = self.characters(example, number, [(first, last) for _, first, last, _ in chosen])
                    if places is None:
                        continue
                    event = [
                        ((*place, self.config.labels[span[0]]), span[3])
                        for place, span in zip(places, chosen, strict=True)
                    ]
                    if kind not in self.number or any(label == kind for (_, _, label), _ in event):
                        found.setdefault(frozenset(span for span, _ in event), event)
        whole = [event for key, event in found.items() if not any(key < other for other in found)]
        text = example.row.data["text"]
        return {"events": [_result(text, event) for event in sorted(whole, key=lambda each: sorted(each))]}

    def _kind(self, number: int) -> str:
        return self.config.labels[number].split(_ROLE)[0]

    @classmethod
    def true_items(cls, row: Row) -> set[Item]:
        return {(label, start, stop) for event in events_of(row) for start, stop, label in event.spans}

    @classmethod
    def found_items(cls, row: Row, result: Result) -> set[Item]:
        return cls.true_items(Row(row.where, {"text": row.data["text"], **result}))

    def measure(self, rows: Sequence[Row], results: Sequence[Result]) -> dict[str, float]:
        """Score spans with their roles, triggers included; "event_f1" scores events that are right in every span."""
        found = [Row(row.where, {"text": row.data["text"], **each}) for row, each in zip(rows, results, strict=True)]
        sides = [[{frozenset(event.spans) for event in events_of(row)} for row in side] for side in (rows, found)]
        return {**super().measure(rows, results), "event_f1": set_scores(*sides)["f1"]}


def _result(text: str, event: Sequence[tuple[Span, float]]) -> dict[str, Any]:
    """Return an event from its spans with their scores; of several triggers the best one."""
    kind = event[0][0][2].split(_ROLE)[0]
    made: dict[str, Any] = {"label": kind, "arguments": []}
    for (start, stop, label), score in sorted(event):
        span = {"start": start, "stop": stop, "text": text[start:stop], "score": score}
        if label != kind:
            made["arguments"].append(span | {"label": label.partition(_ROLE)[2]})
        elif score > made.get("trigger", {"score": -torch.inf})["score"]:
            made["trigger"] = span
    return made


def cliques(nodes: set[int], links: Sequence[set[int]]) -> Iterator[set[int]]:
    """Yield the largest sets of nodes all linked to one another (Bron and Kerbosch, 1973).

    links: of each node, those it is linked to.
    """

    def expand(chosen: set[int], left: set[int], seen: set[int]) -> Iterator[set[int]]:
        if not left and not seen:
            yield chosen
            return
        pivot = max(left | seen, key=lambda node: len(links[node] & left))
        for node in sorted(left - links[pivot]):
            yield from expand(chosen | {node}, left & links[node], seen & links[node])
            left, seen = left - {node}, seen | {node}

    yield from expand(set(), nodes, set())


def events_of(row: Row) -> list[Event]:
    """Return the row's events, checked against its text.

    Raises DataError for an event without a label or any span, and what `spans_of` raises.
    """
    text, found = row.get("text", str), []
    for each in row.get("events", list):
        label = each.get("label") if isinstance(each, Mapping) else None
        if not isinstance(label, str) or not label or _ROLE in label:
            wanted = "{'label', 'trigger', 'arguments'} with a label"
            raise row.error(f"'events' holds {str(each)[:100]}; expected {wanted} that has no {_ROLE!r}")
        trigger = [] if each.get("trigger") is None else [each["trigger"]]
        parts = {
            "trigger": [{**span, "label": label} if isinstance(span, Mapping) else span for span in trigger],
            "arguments": each.get("arguments", []),
        }
        inner = Row(row.where, {"text": text, **parts})
        arguments = [(start, stop, f"{label}{_ROLE}{role}") for start, stop, role in spans_of(inner, "arguments")]
        spans = (*spans_of(inner, "trigger"), *dict.fromkeys(arguments))
        if not spans:
            raise row.error(f"the event {label!r} has neither a trigger nor arguments")
        found.append(Event(label, spans))
    return found
