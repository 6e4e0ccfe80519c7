"""The work on rows: windows of them, sorted by length into batches, given back in the order of the file.

Knows rows and writers. Knows no files; where results go is `files.py`'s.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from hanmo.batch.rows import Row, row_seed
from hanmo.errors import HanmoError, PromptError
from hanmo.generate.rules import check_count
from hanmo.generate.text import Written, read_prompt, write
from hanmo.tokenizers.protocol import Tokenizer
from hanmo.writer import Writer

__all__ = ["WINDOW", "BatchWriter", "Line"]

WINDOW = 8  # batches that are held at once, so that those of one length come together


class Line(NamedTuple):
    """What came of one row.

    number, end: as in `Row`.   good: whether texts were written.   chars: of what was written, without prompts.
    text: a line of JSON, for the results if good, else for the errors.
    """

    number: int
    end: int
    good: bool
    chars: int
    text: str


class BatchWriter:
    """Write for rows with one model and one way of writing.

    seed: of the run; that of a row which brings none is derived from it.   batch: texts that are written at once;
    it changes no result.   n, beams, how: as in `Writer.write`.
    Raises ConfigError for a setting out of range, MissingFile without a vocabulary, CheckpointError if it cannot write.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        seed: int,
        n: int = 1,
        beams: int | None = None,
        batch: int = 8,
        how: Mapping[str, Any],
    ) -> None:
        check_count("n", n)
        check_count("batch", batch)
        self._writer, self._engine, self._writing = writer, writer.engine, writer.writing(**how)
        self._seed, self._n, self._beams, self._how = seed, n, beams, how
        self._rows = 1 if beams is not None else max(1, batch // n)

    def write(self, rows: Iterable[Row]) -> Iterator[list[Line]]:
        """Write for rows and give a line for each, in their order, as soon as those before it are there.

        A row that cannot be written on from gives a line that says so, and its neighbours do not notice.
        """
        rows = iter(rows)
        while window := list(islice(rows, WINDOW * self._rows)):
            done, batches = self._sort(window)
            waiting = iter(window)
            row = next(waiting, None)
            for batch in [[], *batches]:
                done |= self._texts(batch)
                ready = []
                while row is not None and row.number in done:
                    ready.append(done.pop(row.number))
                    row = next(waiting, None)
                if ready:
                    yield ready

    def _sort(self, window: Sequence[Row]) -> tuple[dict[int, Line], list[list[Row]]]:
        """Part the rows into lines of errors, and batches of like length in the order of their first rows."""
        bad, good = {}, []
        for row in window:
            try:
                if row.error is not None:
                    raise PromptError(row.error)
                good.append((len(read_prompt(self._engine, self._tokenizer, row.prompt, self._writing)), row))
            except PromptError as error:
                bad[row.number] = _bad(row, error)
        good.sort(key=lambda pair: pair[0])
        batches = [[row for _, row in good[start : start + self._rows]] for start in range(0, len(good), self._rows)]
        return bad, sorted(batches, key=lambda batch: min(row.number for row in batch))

    def _texts(self, rows: Sequence[Row]) -> dict[int, Line]:
        try:
            return {row.number: self._good(row, texts) for row, texts in zip(rows, self._write(rows), strict=True)}
        except HanmoError as error:
            if len(rows) == 1:
                return {rows[0].number: _bad(rows[0], error)}
        lines: dict[int, Line] = {}
        for row in rows:  # one of them failed, and which is not told
            lines |= self._texts([row])
        return lines

    def _write(self, rows: Sequence[Row]) -> list[list[Written]]:
        if not rows:
            return []
        if self._beams is not None:
            (row,) = rows
            return [self._writer.write_detailed(row.prompt, n=self._n, seed=row.seed, beams=self._beams, **self._how)]
        seeds = [row_seed(self._seed, row.number) if row.seed is None else row.seed for row in rows]
        prompts = [row.prompt for row in rows]
        return write(self._engine, self._tokenizer, prompts, n=self._n, writing=self._writing, seed=seeds)

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self._writer.tokenizer is not None  # `Writer.writing` sees to it
        return self._writer.tokenizer

    def _good(self, row: Row, texts: Sequence[Written]) -> Line:
        whole = [self._writer.joined(row.prompt, written) for written in texts]
        chars = sum(len(written.text) for written in texts)
        return _line(row, {"prompt": row.prompt, "texts": whole}, chars)


def _bad(row: Row, error: HanmoError) -> Line:
    return _line(row, {"error": " ".join(str(error).split())}, None)


def _line(row: Row, what: Mapping[str, Any], chars: int | None) -> Line:
    text = json.dumps({"row": row.number, "id": row.id, **what}, ensure_ascii=False) + "\n"
    return Line(row.number, row.end, chars is not None, chars or 0, text)
