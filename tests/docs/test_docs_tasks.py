"""The programs in the documents about tasks run, and the tables list every kind."""

import json
import re
import sys
from pathlib import Path

import pytest

from hanmo.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "tasks"))

from toy_tasks import model_folder, sky_rows  # noqa: E402

PAGES = ["docs/tasks.md", "docs/zh/tasks.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_programs_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "chinese-bert")
    for name, seed in (("train", 0), ("dev", 1), ("test", 2)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sky_rows(64, seed=seed)]
        Path(f"{name}.jsonl").write_text("".join(lines), "utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    configs = []
    for block in blocks:
        exec(compile(block, page, "exec"), names)
        configs.append(names.pop("config", None))
    assert capsys.readouterr().out.startswith("accuracy 0.")
    assert configs[0] is None and configs[1].options == {"class_weights": {"负面": 3.0}}
    assert {"classify", "tag"} <= {config.kind for config in configs[1:]} <= set(TASKS)


@pytest.mark.parametrize("page", PAGES)
def test_every_kind_is_listed(page):
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert [name for name in listed if name in TASKS] == list(TASKS)
