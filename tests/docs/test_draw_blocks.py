"""The picture of the blocks is drawn from the configurations, and the one in docs/ shows what they say today."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "gpt2_ml": "embeddings norm [ branch attention add branch norm feed_forward add norm ]",
    "gpt2": "embeddings [ branch norm attention add branch norm feed_forward add ] norm",
    "bert": "embeddings norm [ branch attention add norm branch feed_forward add norm ]",
}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs" / "draw_blocks.py"))


@pytest.mark.parametrize("family", EXPECTED)
def test_the_steps_are_those_of_the_configuration(script, family):
    assert str(script["steps_of"](family)) == EXPECTED[family]


def test_the_picture_in_the_docs_is_up_to_date(script, tmp_path):
    script["draw"](tmp_path / "blocks.png")
    with Image.open(ROOT / "docs" / "blocks.png") as ours, Image.open(tmp_path / "blocks.png") as drawn:
        assert ours.text["Description"] == drawn.text["Description"]
        assert ours.text["Description"] == "; ".join(f"{family}: {steps}" for family, steps in EXPECTED.items())
        assert min(ours.size) > 400
        # A letter's edge depends on the version of matplotlib; boxes, arrows and their order do not.
        assert abs(ours.size[0] - drawn.size[0]) <= 2 and abs(ours.size[1] - drawn.size[1]) <= 2


def test_readme_and_architecture_show_it():
    assert "](docs/blocks.png)" in (ROOT / "README.md").read_text("utf-8")
    assert "](blocks.png)" in (ROOT / "docs" / "architecture.md").read_text("utf-8")
