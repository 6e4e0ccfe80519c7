"""The page, driven in Chromium: it continues, stops, undoes, shades, fills and predicts, by mouse and by keyboard."""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from test_model_pipeline import small
from toy_server import byte_model, running, task_folder, wait_for

from hanmo.generate.scheduler import Scheduler
from hanmo.model_pipeline import Candidate
from hanmo.server.models import Served
from hanmo.tasks import load as load_task

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
if CHROMIUM is None:
    pytest.skip(f"no browser: looked for {', '.join(NAMES)} on PATH", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test for any error of its script and any request to another address."""
    context, problems = browser.new_context(locale="zh-CN"), []
    found = context.new_page()
    found.set_default_timeout(20_000)
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("request", lambda request: problems.append(request.url) if "//127.0.0.1:" not in request.url else None)
    yield found
    context.close()
    assert problems == []


def opened(page: Any, url: str, text: str = "") -> Any:
    page.goto(f"{url}/")
    page.locator("#model option").first.wait_for(state="attached")
    page.fill("#text", text)
    return page


def written(page: Any) -> list[str]:
    page.locator("#stop-button[disabled]").wait_for()
    return page.locator("#cards p").all_inner_texts()


def text_of(page: Any) -> str:
    return page.locator("#text").input_value()


def test_a_candidate_is_taken_by_a_key_shaded_and_undone(page: Any) -> None:
    with running(byte_model({"春天": "来了，花都开了😀。"})) as url:
        opened(page, url, "春天")
        page.keyboard.press("Control+Enter")
        assert written(page) == ["来了，花都开了😀。"] * 3
        page.keyboard.press("Alt+2")
        assert text_of(page) == "春天来了，花都开了😀。" and page.locator("#cards li").count() == 0
        shades = page.locator("#shades .bits").all_inner_texts()
        assert "".join(shades) == "来了，花都开了😀。"
        page.locator("#shades .bits").first.hover(force=True)
        assert "概率" in page.locator("#tip").inner_text()
        page.keyboard.press("Control+Shift+Z")
        assert text_of(page) == "春天" and page.locator("#undo-button").is_disabled()


def test_undo_removes_the_candidate_and_keeps_what_was_typed_since(page: Any) -> None:
    with running(byte_model({"春天": "来了，花都开了。", "春天到来了，花儿都开了。真好": "吗？"})) as url:
        opened(page, url, "春天").click("#continue-button")
        page.locator("#stop-button[disabled]").wait_for()
        page.keyboard.press("Alt+1")
        for text in ("春天到来了，花都开了。", "春天到来了，花儿都开了。", "春天到来了，花儿都开了。真好"):
            page.fill("#text", text)  # typed before, in and behind the candidate
        page.click("#continue-button")
        page.locator("#stop-button[disabled]").wait_for()
        page.keyboard.press("Alt+1")
        assert text_of(page) == "春天到来了，花儿都开了。真好吗？"
        page.click("#undo-button")
        assert text_of(page) == "春天到来了，花儿都开了。真好"
        page.click("#undo-button")
        assert text_of(page) == "春天到儿真好" and page.locator("#undo-button").is_disabled()


def test_the_keys_of_candidates_do_nothing_in_another_tab(page: Any) -> None:
    served = byte_model({"春天": "来了。", "春天来了。": "好。"})
    served.pipeline.predict = lambda texts, batch: []
    with running(served) as url:
        opened(page, url, "春天").click("#continue-button")
        page.locator("#stop-button[disabled]").wait_for()
        page.keyboard.press("Alt+1")
        page.click("#continue-button")
        page.locator("#stop-button[disabled]").wait_for()
        page.click("#tab-task")
        for keys in ("Alt+1", "Control+Shift+Z"):
            page.keyboard.press(keys)
            assert text_of(page) == "春天来了。" and page.locator("#cards li").count() == 3


def test_escape_stops_what_is_running(page: Any) -> None:
    model = byte_model({"go": "x" * 400}, pace=0.05)
    with running(model) as url:
        opened(page, url, "go").click("#continue-button")
        page.locator("#cards p", has_text="xx").first.wait_for()
        page.keyboard.press("Escape")
        assert 0 < len(written(page)[0]) < 60 and page.locator("#cards footer span").first.inner_text() == "已停止"


def focused(page: Any) -> str:
    return str(page.evaluate("() => document.activeElement.id"))


def test_the_focus_never_stays_on_a_disabled_button(page: Any) -> None:
    with running(byte_model({"go": "x" * 400}, pace=0.05)) as url:
        opened(page, url, "go").focus("#continue-button")
        page.keyboard.press("Enter")
        page.locator("#cards p", has_text="xx").first.wait_for()
        assert focused(page) == "stop-button"
        page.keyboard.press("Enter")
        page.locator("#stop-button[disabled]").wait_for()
        assert focused(page) == "continue-button"
        page.keyboard.press("Enter")
        page.locator("#cards p", has_text="xx").first.wait_for()
        page.locator("#cards button").first.click()  # while the stream runs
        assert focused(page) == "continue-button" and page.locator("#continue-button").is_enabled()
        page.focus("#undo-button")
        page.keyboard.press("Enter")
        assert focused(page) == "text" and text_of(page) == "go"


def test_a_kept_seed_writes_the_same_and_a_free_one_is_shown_and_changes(page: Any) -> None:
    with running(byte_model()) as url:
        opened(page, url, "abc")
        texts, seeds = [], []
        for kept in (False, True, False):
            page.set_checked("#lock", kept)
            page.click("#continue-button")
            texts.append(written(page))
            seeds.append(page.input_value("#seed"))
        assert texts[0] == texts[1] != texts[2] and seeds[0] == seeds[1] != seeds[2] and len(set(texts[0])) == 3


def test_a_text_of_one_s_own_is_scored_and_an_edit_keeps_what_is_before_it(page: Any) -> None:
    with running(byte_model()) as url:
        opened(page, url, "a😀bcd").click("#score-button")
        page.locator("#reading", has_text="比特/字").wait_for()
        page.locator("#text").press("End")
        page.keyboard.press("Backspace")
        assert page.locator("#shades .bits").all_inner_texts()[-1] == "c"


def test_the_request_has_the_model_that_is_chosen_and_the_settings_that_are_shown(page: Any) -> None:
    with running(byte_model(), byte_model({"go": "x"}, name="另一个")) as url:
        opened(page, url, "go").select_option("#model", "另一个")
        for name, value in (("candidates", "2"), ("temperature", "0.5"), ("top-k", "7"), ("length", "24")):
            page.fill(f"#{name}", value)
            assert page.locator(f"output[for={name}]").inner_text() == value
        page.check("#sentence")
        with page.expect_request("**/v1/completions") as asked:
            page.click("#continue-button")
        assert written(page) == ["x", "x"]
        body = json.loads(asked.value.post_data)
        sent = {"model": "另一个", "n": 2, "temperature": 0.5, "top_k": 7, "max_tokens": 24, "stop_at_sentence": True}
        assert {name: body[name] for name in sent} == sent and body["seed"] == int(page.input_value("#seed"))


def test_the_tokens_of_a_candidate_and_their_alternatives_are_shown_by_keys_and_by_touch(browser: Any) -> None:
    context = browser.new_context(locale="zh-CN", has_touch=True)
    with running(byte_model({"春": "天x"})) as url:
        page = opened(context.new_page(), url, "春")
        page.click("#continue-button")
        written(page)
        shown = page.locator("#cards p").first
        shown.focus()
        for key, text in (("ArrowRight", "天"), ("ArrowRight", "x"), ("ArrowRight", "x"), ("ArrowLeft", "天")):
            page.keyboard.press(key)
            assert page.locator("#cards .current").inner_text() == text
        lines = page.locator("#tip").inner_text().splitlines()
        assert "概率" in lines[0] and len(lines) == 1 + 5  # and five alternatives
        page.locator("#text").focus()
        assert page.locator("#tip").is_hidden()
        page.locator("#cards .bits", has_text="x").first.tap()
        assert page.locator("#tip").inner_text().splitlines()[1].startswith("x ")
    context.close()


def test_an_answer_takes_the_place_of_its_source_which_undo_brings_back(page: Any, tmp_path: Any) -> None:
    loaded = small("t5.1.1", tmp_path)
    with running(Served("答", loaded, "toy", Scheduler(loaded.engine))) as url:
        answer = ""
        while not answer:  # random weights may end a text at once
            opened(page, url, "今天天气").click("#continue-button")
            answer = written(page)[0]
        assert page.locator("#score-button").is_hidden()
        page.keyboard.press("Alt+1")
        assert text_of(page) == answer
        page.keyboard.press("Control+Shift+Z")
        assert text_of(page) == "今天天气" and page.locator("#undo-button").is_disabled()


@pytest.mark.parametrize(
    ("kind", "text", "left"),
    [("bert", "今[MASK]天[MASK]", "今[MASK]天气"), ("t5.1.1", "<extra_id_0>天<extra_id_1>", "<extra_id_0>天气")],
)
def test_a_click_fills_its_mask_without_the_marks_of_a_piece(
    page: Any, tmp_path: Any, monkeypatch: Any, kind: str, text: str, left: str
) -> None:
    loaded = small(kind, tmp_path)
    model = Served("填", loaded, "toy", Scheduler(loaded.engine) if kind == "t5.1.1" else None)
    asked: list[str] = []
    monkeypatch.setattr(model.pipeline, "fill", lambda text, k: asked.append(text) or [[Candidate("##气", 0.5)]] * 2)
    with running(model) as url:
        page.goto(f"{url}/")
        page.click("#tab-fill")
        page.fill("#fill-text", text)
        page.click("#fill-button")
        page.locator("#fills .fill").nth(1).locator("button").click()
        wait_for(lambda: asked == [text, left])
        assert page.input_value("#fill-text") == left


def test_the_mask_is_that_of_the_model(page: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Served, "mask", "<mask>")
    with running(Served("填", small("bert", tmp_path), "toy")) as url:
        page.goto(f"{url}/")
        page.locator("#mask-button", has_text="插入 <mask>").click()
        assert page.input_value("#fill-text") == "<mask>"


def test_keys_of_an_input_method_are_left_to_it(page: Any) -> None:
    with running(byte_model()) as url:
        opened(page, url, "a")
        page.focus("#text")
        session = page.context.new_cdp_session(page)
        session.send("Input.imeSetComposition", {"text": "tian", "selectionStart": 4, "selectionEnd": 4})
        event = "new KeyboardEvent('keydown', {key: 'Enter', ctrlKey: true, isComposing: true, bubbles: true})"
        page.locator("#text").evaluate(f"box => box.dispatchEvent({event})")
        assert page.locator("#cards li").count() == 0
        session.send("Input.insertText", {"text": "天"})
        assert text_of(page).endswith("天")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark_and_both_languages(page: Any, scheme: str) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.emulate_media(color_scheme=scheme)
    with running(byte_model({"春": "天" * 60})) as url:
        opened(page, url, "春")
        for word in ("续写", "Continue"):
            assert page.locator("#continue-button").inner_text() == word
            page.click("#continue-button")
            assert written(page)[0].startswith("天")
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
            page.click("#language")
        style = "() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ink, ground = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in page.evaluate(style))
        assert (ink > ground + 450) if scheme == "dark" else (ground > ink + 450)  # of 765


def test_a_key_is_asked_for_and_a_path_prefix_is_kept(page: Any) -> None:
    with running(byte_model({"春": "天。"}), keys=["secret"], root_path="/写作") as url:
        page.goto(f"{url}/写作/")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.locator("#error", has_text="API 密钥").wait_for()
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.locator("#model option", has_text="字节").wait_for(state="attached")
        page.locator("#tab-write:focus").wait_for()
        page.fill("#text", "春")
        page.keyboard.press("Control+Enter")
        assert written(page)[0] == "天。"


def test_a_refusal_is_shown_in_the_server_s_words(page: Any) -> None:
    with running(byte_model(positions=16)) as url:
        opened(page, url, "a" * 40).click("#continue-button")
        page.locator("#error", has_text="16").wait_for()
        assert page.locator("#cards li").count() == 0 and page.locator("#continue-button").is_enabled()


def test_masks_are_filled_and_a_task_predicts(page: Any, tmp_path: Any) -> None:
    encoder = Served("encoder", small("bert", tmp_path / "bert"), "toy")
    task = Served("task", load_task(task_folder(tmp_path)), "toy")
    with running(encoder, task) as url:
        page.goto(f"{url}/")
        page.locator("#tab-fill[aria-selected=true]").wait_for()
        page.click("#mask-button")
        page.click("#fill-button")
        page.locator("#fills button").first.click()
        assert "[MASK]" not in page.input_value("#fill-text")
        page.keyboard.press("Tab")
        page.focus("#tab-fill")
        page.keyboard.press("ArrowRight")
        assert page.locator("#tab-task").get_attribute("aria-selected") == "true"
        page.fill("#task-text", "今天天气好")
        page.keyboard.press("Control+Enter")
        page.locator("#answer pre", has_text="label").wait_for()


def test_the_spans_of_a_task_are_marked_in_the_text(page: Any) -> None:
    class Spans:
        """A task that finds a place within another."""

        def predict(self, texts: list[str], batch: int) -> list[Any]:
            spans = [{"start": 1, "stop": 6, "label": "机构"}, {"start": 1, "stop": 3, "label": "地点"}]
            return [{"spans": spans} for _ in texts]

    served = byte_model(name="spans")
    served.pipeline.predict = Spans().predict
    with running(served) as url:
        opened(page, url)
        page.click("#tab-task")
        page.fill("#task-text", "😀北京大学的")
        page.click("#task-button")
        page.locator("#answer mark mark", has_text="北京").wait_for()
        assert page.locator("#answer > p > mark").get_attribute("data-label") == "机构"
        assert page.locator("#answer").inner_text() == "😀北京大学的"
