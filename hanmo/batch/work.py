"""Generate for rows: windows of them are sorted by length into batches; results come in the order of the file.

Knows rows and pipelines, and no files.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from hanmo.batch.rows import Row, row_seed
from hanmo.errors import HanmoError, PromptError
from hanmo.generate.dynamic import is_dynamic
from hanmo.generate.rules import check_count
from hanmo.generate.text import GeneratedText, read_prompt, search, write, write_each
from hanmo.pipeline import Pipeline, check_search
from hanmo.tokenizers.protocol import Tokenizer

_WINDOW = 8  # batches that are sorted by length together


def window_rows(*, batch: int, n: int, beams: int | None) -> int:
    """Return the rows that are sorted by length into batches of `batch` texts, n a row; a search takes single rows.

    Windows are counted from the first row of the file, so that a run resumed at the start of one has the same batches.
    """
    return _WINDOW * (1 if beams is not None else max(1, batch // n))


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
    """Generate for rows with one model and one set of options.

    seed: of the run, from which that of a row without one is derived.   batch: texts that are generated at once; in
    float32, and with the fused step, it changes no result; else it may, as which rows share a batch changes how sums
    are rounded.
    n, beams, how: as in `Pipeline.write`.
    Raises ConfigError for a setting out of range, MissingFile without a vocabulary, CheckpointError if the model cannot
    generate text.
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
        self._seed, self._n, self._beams, self._batch, self._how = seed, n, beams, batch, how
        self.window = window_rows(batch=batch, n=n, beams=beams)

    def write(self, rows: Iterable[Row], *, done: int = 0) -> Iterator[list[Line]]:
        """Yield a line for each row, in the order of the rows, as soon as the lines before it are there.

        rows: from the start of a window.   done: the number of the last row that has its line; rows up to it get none,
        but a batch that also holds later rows is computed in full, so that an interruption changes no text.
        A row that fails gets a line with its error, and the other rows of its batch get theirs.
        Where the engine computes rows of different lengths together, the next row joins when one has ended, and there
        are neither windows nor batches.
        """
        if self._beams is None and is_dynamic(self._engine):
            yield from self._write_each(row for row in rows if row.number > done)
            return
        rows, size = iter(rows), self.window // _WINDOW
        while window := list(islice(rows, self.window)):
            lines: dict[int, Line] = {}
            prompts: dict[Row, list[int]] = {}
            for row in window:
                prompt = self._prompt(row)
                if isinstance(prompt, PromptError):
                    lines[row.number] = _failed(row, prompt)
                else:
                    prompts[row] = prompt
            good = sorted(prompts, key=lambda row: len(prompts[row]))
            batches = [good[start : start + size] for start in range(0, len(good), size)]
            batches.sort(key=lambda batch: min(row.number for row in batch))
            waiting = (row.number for row in window if row.number > done)
            number = next(waiting, None)
            for batch in [[], *batches]:  # the lines of rows that are not valid need no batch
                if any(row.number > done for row in batch):
                    lines |= self._lines(batch, prompts)
                ready = []
                while number in lines:
                    ready.append(lines.pop(number))
                    number = next(waiting, None)
                if ready:
                    yield ready

    def _write_each(self, rows: Iterable[Row]) -> Iterator[list[Line]]:
        taken: deque[Row] = deque()

        def items() -> Iterator[tuple[str, Sequence[int] | HanmoError, int]]:
            for row in rows:
                taken.append(row)
                yield row.prompt, self._prompt(row), self._row_seed(row)

        written = write_each(
            self._engine, self._tokenizer, items(), n=self._n, config=self._config, max_rows=max(self._batch, self._n)
        )
        for result in written:
            row = taken.popleft()
            yield [_failed(row, result) if isinstance(result, HanmoError) else self._written(row, result)]

    def _prompt(self, row: Row) -> list[int] | PromptError:
        """Return the ids of a row's prompt, or why it has none."""
        try:
            if row.error is not None:
                raise PromptError(row.error)
            return read_prompt(self._engine, self._tokenizer, row.prompt, self._config)
        except PromptError as error:
            return error

    def _row_seed(self, row: Row) -> int:
        return row_seed(self._seed, row.number) if row.seed is None else row.seed

    def _written(self, row: Row, texts: Sequence[GeneratedText]) -> Line:
        what = {"prompt": row.prompt, "texts": [self._writer.joined(row.prompt, each) for each in texts]}
        return _line(row, what, good=True, chars=sum(len(each.text) for each in texts))

    def _lines(self, rows: Sequence[Row], prompts: Mapping[Row, list[int]]) -> dict[int, Line]:
        """Generate for a batch; if it fails, for each row alone, as it is unknown which one failed."""
        try:
            results = self._texts(rows, prompts)
        except HanmoError as error:
            if len(rows) == 1:
                return {rows[0].number: _failed(rows[0], error)}
            return {row.number: self._lines([row], prompts)[row.number] for row in rows}
        return {row.number: self._written(row, texts) for row, texts in zip(rows, results, strict=True)}

    def _texts(self, rows: Sequence[Row], prompts: Mapping[Row, list[int]]) -> list[list[GeneratedText]]:
        if self._beams is not None:
            (row,) = rows
            check_search(self._beams, self._n, row.seed, self._how)
            # By the engine itself: what `Pipeline` keeps of earlier prompts would make a text depend on them.
            found = search(self._engine, self._tokenizer, row.prompt, self._beams, config=self._config)
            return [found[: self._n]]
        return write(
            self._engine,
            self._tokenizer,
            [row.prompt for row in rows],
            n=self._n,
            config=self._config,
            seed=[self._row_seed(row) for row in rows],
            prompts=[prompts[row] for row in rows],
        )

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self._writer.tokenizer is not None  # `Pipeline.generation_config` checks it
        return self._writer.tokenizer


def _failed(row: Row, error: HanmoError) -> Line:
    return _line(row, {"error": " ".join(str(error).split())}, good=False, chars=0)


def _line(row: Row, what: Mapping[str, Any], *, good: bool, chars: int) -> Line:
    text = json.dumps({"row": row.number, "id": row.id, **what}, ensure_ascii=False) + "\n"
    return Line(row.number, row.end, good, chars, text)
