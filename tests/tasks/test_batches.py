"""Batches of prediction: windows of like length, few ids at once on a CPU."""

import pytest
from untrained import untrained

from hanmo.tasks import TaskConfig
from hanmo.tasks.rows import as_rows

CLASSIFY = TaskConfig(kind="classify", form="single", labels=("earth", "sky"), head="linear", max_length=60)


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_a_batch_has_at_most_1024_ids_and_the_rows_asked_for(tmp_path, batch):
    pipeline = untrained(tmp_path, CLASSIFY)
    texts = ["天" * length for length in (3, 58, 40, 41, 700, 2, *[30] * 80)]
    windows = sum(len(pipeline.task.encode(row).windows) for row in as_rows(texts))
    shapes = []
    pipeline.network.register_forward_pre_hook(lambda network, given: shapes.append(tuple(given[0]["ids"].shape)))
    assert len(pipeline.predict(texts, batch=batch)) == len(texts)
    assert sum(rows for rows, _ in shapes) == windows > len(texts)
    assert all(rows <= batch and rows * length <= 1024 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) == min(batch, 1024 // 32)
