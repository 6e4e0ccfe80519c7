"""Generate for rows: windows of them are sorted by length into batches; results come in the order of the file.

Knows rows and pipelines, and no files.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from hanmo.batch.rows import Row, row_seed
from hanmo.errors import HanmoError, PromptError
from hanmo.generate.rules import check_count
from hanmo.generate.text import GeneratedText, read_prompt, search, write
from hanmo.pipeline import Pipeline, check_search
from hanmo.tokenizers.protocol import Tokenizer

__all__ = ["BatchWriter", "Line", "batch_rows", "window_rows"]

_WINDOW = 8  # batches that are sorted by length together


def batch_rows(*, batch: int, n: int, beams: int | None) -> int:
    """Return the rows of a batch of at most `batch` texts, n per row; beam search takes one row at a time."""
    return 1 if beams is not None else max(1, batch // n)


def window_rows(*, batch: int, n: int, beams: int | None) -> int:
    """Return the rows that are sorted by length into batches together.

    Windows are counted from the first row of the file, so that a run resumed at the start of one has the same batches.
    """
    return _WINDOW * batch_rows(batch=batch, n=n, beams=beams)


class Line(NamedTuple):
    """The result of one row.

    number, end: as in `Row`.   good: whether it succeeded.   chars: generated characters, without prompts.
    text: a line of JSON, for the results if good, else for the errors.
    """

    number: int
    end: int
    good: bool
    chars: int
    text: str


class BatchWriter:
    """Write for rows with one model and one way of writing.

    seed: of the run; that of a row which brings none is derived from it.   batch: texts that are written at once; in
    float32 it changes no result, with other weights it may, as which rows share a batch changes how sums are rounded.
    n, beams, how: as in `Pipeline.write`.
    Raises ConfigError for a setting out of range, MissingFile without a vocabulary, CheckpointError if it cannot write.
    """

    def __init__(
        self,
        writer: Pipeline,
        *,
        seed: int,
        n: int = 1,
        beams: int | None = None,
        batch: int = 8,
        how: Mapping[str, Any],
    ) -> None:
        check_count("n", n)
        check_count("batch", batch)
        self._writer, self._engine, self._config = writer, writer.engine, writer.generation_config(**how)
        self._seed, self._n, self._beams, self._how = seed, n, beams, how
        self._prompts: dict[int, list[int]] = {}  # number of a row of the window → its ids
        self._rows = batch_rows(batch=batch, n=n, beams=beams)
        self.window = window_rows(batch=batch, n=n, beams=beams)

    def write(self, rows: Iterable[Row], *, done: int = 0) -> Iterator[list[Line]]:
        """Yield a line for each row, in their order, as soon as those before it are there.

        rows: from the start of a window.   done: the number of the last row that has its line; rows up to it get none,
        but a batch that also holds later rows is computed in full, so that an interruption changes no text.
        A row that fails gets a line with its error, and the other rows of its batch get theirs.
        """
        rows = iter(rows)
        while window := list(islice(rows, self.window)):
            lines, batches = self._sort(window)
            waiting = (row.number for row in window if row.number > done)
            number = next(waiting, None)
            for batch in [[], *batches]:
                if any(row.number > done for row in batch):
                    lines |= self._texts(batch)
                ready = []
                while number in lines:
                    ready.append(lines.pop(number))
                    number = next(waiting, None)
                if ready:
                    yield ready

    def _sort(self, window: Sequence[Row]) -> tuple[dict[int, Line], list[list[Row]]]:
        """Split the rows into lines of errors, and batches of similar length in the order of their first rows."""
        bad, good = {}, []
        self._prompts = {}
        for row in window:
            try:
                if row.error is not None:
                    raise PromptError(row.error)
                self._prompts[row.number] = read_prompt(self._engine, self._tokenizer, row.prompt, self._config)
                good.append(row)
            except PromptError as error:
                bad[row.number] = _bad(row, error)
        good.sort(key=lambda row: len(self._prompts[row.number]))
        batches = [good[start : start + self._rows] for start in range(0, len(good), self._rows)]
        return bad, sorted(batches, key=lambda batch: min(row.number for row in batch))

    def _texts(self, rows: Sequence[Row]) -> dict[int, Line]:
        try:
            return {row.number: self._good(row, texts) for row, texts in zip(rows, self._write(rows), strict=True)}
        except HanmoError as error:
            if len(rows) == 1:
                return {rows[0].number: _bad(rows[0], error)}
        lines: dict[int, Line] = {}
        for row in rows:  # one of them failed, and it is unknown which
            lines |= self._texts([row])
        return lines

    def _write(self, rows: Sequence[Row]) -> list[list[GeneratedText]]:
        if not rows:
            return []
        if self._beams is not None:
            (row,) = rows
            check_search(self._beams, self._n, row.seed, self._how)
            # By the engine itself: what `Pipeline` keeps of earlier prompts would make a text depend on them.
            found = search(self._engine, self._tokenizer, row.prompt, self._beams, config=self._config)
            return [found[: self._n]]
        seeds = [row_seed(self._seed, row.number) if row.seed is None else row.seed for row in rows]
        return write(
            self._engine,
            self._tokenizer,
            [row.prompt for row in rows],
            n=self._n,
            config=self._config,
            seed=seeds,
            prompts=[self._prompts[row.number] for row in rows],
        )

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self._writer.tokenizer is not None  # `Pipeline.generation_config` sees to it
        return self._writer.tokenizer

    def _good(self, row: Row, texts: Sequence[GeneratedText]) -> Line:
        whole = [self._writer.joined(row.prompt, written) for written in texts]
        chars = sum(len(written.text) for written in texts)
        return _line(row, {"prompt": row.prompt, "texts": whole}, chars)


def _bad(row: Row, error: HanmoError) -> Line:
    return _line(row, {"error": " ".join(str(error).split())}, None)


def _line(row: Row, what: Mapping[str, Any], chars: int | None) -> Line:
    text = json.dumps({"row": row.number, "id": row.id, **what}, ensure_ascii=False) + "\n"
    return Line(row.number, row.end, chars is not None, chars or 0, text)
