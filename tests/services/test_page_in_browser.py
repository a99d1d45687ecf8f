"""The page of a real server in headless Chromium, with the network it may use watched."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rewardzoo.services.config import ServeConfig
from rewardzoo.services.launch import running
from rewardzoo.trainers.lab import triples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        find_spec("gradio") is None or find_spec("playwright") is None,
        reason="needs Gradio and Playwright: pip install 'rewardzoo[ui]' playwright",
    ),
]
TOKEN = "secret"
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    config = ServeConfig(rewards=["hpsv2:mini", "imagereward:mini"], device="cpu", token=TOKEN, ui="on")
    with running(config, start_timeout=120) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in flags])
        yield chromium
        chromium.close()


@pytest.fixture
def asked() -> list[str]:
    """Every URL that the page asked for."""
    return []


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, url: str, asked: list[str]) -> Iterator[Any]:
    context = browser.new_context(
        viewport={"width": request.param, "height": 900},
        http_credentials={"username": "me", "password": TOKEN},
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(url)
    yield page
    context.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """A prompt, and pictures of which `right.png` alone shows it; one of them is broken."""
    folder = tmp_path_factory.mktemp("pictures")
    first, *others = triples(4, seed=6)
    images = {"wrong": first.wrong, **{f"other-{i}": other.right for i, other in enumerate(others)}}
    for name, image in {**images, "right": first.right}.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes((folder / "right.png").read_bytes()[:300])
    return first.prompt, sorted(folder.iterdir())


def names(page: Any) -> list[str]:
    """What the cards show, in the order in which the eye meets them."""
    cards = page.locator("#result .card").all()
    places = [(*reversed([card.bounding_box()[side] for side in "xy"]), card) for card in cards]
    return [card.get_attribute("data-name") for *_, card in sorted(places, key=lambda p: p[:2])]


def test_dropped_pictures_are_ranked_at_every_width(
    page: Any, url: str, asked: list[str], pictures: tuple[str, list[Path]], tmp_path: Path
) -> None:
    prompt, files = pictures
    page.set_input_files("#pictures input[type=file]", files)
    page.fill("#prompt textarea", prompt)
    page.get_by_label("imagereward:mini").check()
    page.locator("#pictures").get_by_text("right").wait_for()
    page.click("#score")
    page.wait_for_selector("#result .card")

    assert names(page)[0] == "right.png"
    assert names(page)[-1] == "broken.png"
    first = page.locator("#result .card").first.inner_text()
    assert re.search(r"^1\s+right\.png", first)
    assert re.search(r"hpsv2:mini\s+0\.\d{4}", first)
    assert "truncated or damaged PNG" in page.locator("#result .card").last.inner_text()

    by_hps = names(page)
    page.locator("#result").get_by_label("imagereward:mini").check()
    assert names(page)[0] == "right.png"
    assert names(page) != by_hps, "the second reward orders the wrong ones in its own way"

    page.get_by_text("What the scores rest on").click()
    assert "weights_sha256" in page.locator("#result .provenance").inner_text()
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "nothing sticks out at the side"
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert Image.open(tmp_path / "page.png").width == width[1]
    assert {re.match(r"(data:|blob:|https?://[^/]+)", u)[1] for u in asked} <= {url, "data:", "blob:"}


@pytest.mark.parametrize("page", [WIDTHS[0]], indirect=True)
def test_queue_figures_come_while_the_page_is_seen(page: Any, asked: list[str]) -> None:
    page.locator("#queues td", has_text="hpsv2:mini").wait_for()
    assert re.fullmatch(r"hpsv2:mini\s+0\s+\d+", page.locator("#queues tbody tr").first.inner_text())
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true})")
    page.wait_for_timeout(500)
    before = len(asked)
    page.wait_for_timeout(3500)
    assert len(asked) == before


@pytest.mark.parametrize("page", [WIDTHS[0]], indirect=True)
def test_what_is_typed_is_shown_as_it_is(page: Any, pictures: tuple[str, list[Path]]) -> None:
    typed = "<b>${alert(1)}</b> {{ 7 * 7 }} @children"
    page.set_input_files("#pictures input[type=file]", pictures[1][-1:])
    page.fill("#prompt textarea", typed)
    page.locator("#pictures").get_by_text("wrong").wait_for()
    page.click("#score")
    assert page.locator("#result h2").inner_text() == typed


@pytest.mark.parametrize("page", [WIDTHS[0]], indirect=True)
def test_a_press_without_pictures_says_what_is_missing(page: Any) -> None:
    page.click("#score")
    assert "drop some" in page.locator("#result .fault").inner_text()


@pytest.mark.parametrize("page", [WIDTHS[0]], indirect=True)
def test_the_documentation_opens_from_the_page_and_loads_nothing_from_elsewhere(
    page: Any, url: str, asked: list[str]
) -> None:
    done: list[str] = []
    page.on("response", lambda response: done.append(response.url))
    page.click("text=HTTP API")
    page.get_by_text("/score").first.wait_for()
    assert {re.match(r"(data:|https?://[^/]+)", u)[1] for u in done} <= {url, "data:"}


def test_without_the_token_a_browser_sees_nothing(browser: Any, url: str) -> None:
    from playwright.sync_api import Error

    page = browser.new_page()
    with pytest.raises(Error, match="INVALID_AUTH_CREDENTIALS"):
        page.goto(url)
    page.close()
