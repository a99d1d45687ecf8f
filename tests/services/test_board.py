from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from rewardzoo.services.board import MAX_PICTURES, board
from rewardzoo.services.config import ServeConfig
from rewardzoo.services.host import Host

WHITE, GREY, BLACK = (255, 255, 255), (128, 128, 128), (0, 0, 0)
Show = Callable[..., str]


@pytest.fixture
def show(model: Any) -> Show:
    """The board of a host with `fake:v1`, which scores how light a picture is."""

    async def answer(pictures: Sequence[tuple[str, bytes]], prompts: str, rewards: Sequence[str]) -> str:
        host = Host(ServeConfig(rewards=["fake:v1"], timeout=5), [model])
        await host.start()
        try:
            return await board(host, pictures, prompts, rewards)
        finally:
            await host.stop()

    def run(
        pictures: Sequence[tuple[str, bytes]], prompts: str = "a cat", rewards: Sequence[str] = ("fake:v1",)
    ) -> str:
        return asyncio.run(answer(pictures, prompts, rewards))

    return run


def names(html: str) -> list[str]:
    return re.findall(r'data-name="([^"]*)"', html)


def faults(html: str) -> list[str]:
    return re.findall(r'class="fault"[^>]*>([^<]*)<', html)


def test_the_best_picture_comes_first_with_its_score_and_provenance(show: Show, png: Any, model: Any) -> None:
    html = show([("black.png", png(BLACK)), ("white.png", png(WHITE)), ("grey.png", png(GREY))])
    assert names(html) == ["white.png", "grey.png", "black.png"]
    assert re.findall(r"<dd>([^<]*)</dd>", html) == ["1.0000", "0.5020", "0.0000"]
    assert all(f"<td>{fact}</td>" in html for fact in model.provenance().values())
    assert "<h2>a cat</h2>" in html


def test_a_picture_that_cannot_be_scored_says_why_and_comes_last(show: Show, png: Any) -> None:
    html = show([("broken.png", png(WHITE)[:40]), ("black.png", png(BLACK)), ("text.png", b"hello")])
    assert names(html)[0] == "black.png"
    errors = re.findall(r'class="error">([^<]*)<', html)
    assert len(errors) == 2
    assert "truncated or damaged PNG" in errors[0]
    assert html.count("no picture to show") == 2


def test_one_prompt_a_line_goes_to_each_picture_in_turn(show: Show, png: Any) -> None:
    html = show([("a.png", png(BLACK)), ("b.png", png(WHITE))], "first\n\n second \n")
    shown = dict(zip(names(html), re.findall(r'class="prompt"[^>]*>([^<]*)<', html), strict=True))
    assert shown == {"a.png": "first", "b.png": "second"}


def test_what_a_user_typed_or_named_is_text_and_never_markup(show: Show, png: Any) -> None:
    html = show([('"><script>x</script>.png', png())], "<img src=x onerror=alert(1)>")
    assert "<script>" not in html
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


@pytest.mark.parametrize(
    ("pictures", "prompts", "rewards", "says"),
    [
        (0, "a cat", ["fake:v1"], "no picture"),
        (1, "a cat", [], "No reward is chosen"),
        (3, "a cat\na dog", ["fake:v1"], "2 prompts and 3 pictures"),
        (MAX_PICTURES + 1, "a cat", ["fake:v1"], f"{MAX_PICTURES + 1} pictures"),
        (1, "a cat", ["nope:v9"], "there are: fake:v1"),
    ],
)
def test_a_request_that_cannot_be_met_is_told_what_to_change(
    show: Show, png: Any, pictures: int, prompts: str, rewards: list[str], says: str
) -> None:
    html = show([("a.png", png())] * pictures, prompts, rewards)
    assert len(faults(html)) == 1
    assert says in faults(html)[0]
    assert not names(html)


def test_an_empty_prompt_is_the_error_of_the_picture(show: Show, png: Any) -> None:
    assert "the prompt is empty" in show([("a.png", png())], "  ")


def test_a_reward_that_fails_leaves_the_others_on_the_board(show: Show, png: Any) -> None:
    html = show([("a.png", png())], rewards=["nope:v9", "fake:v1"])
    assert names(html) == ["a.png"]
    assert faults(html)[0].startswith("nope:v9: ")


def test_details_are_shown_beside_the_score(show: Show, png: Any, model: Any) -> None:
    evaluate = model.evaluate

    def with_details(batch: Any) -> Any:
        from dataclasses import replace

        return [replace(score, details={"sure": True}) for score in evaluate(batch)]

    model.evaluate = with_details
    html = show([("a.png", png())])
    assert "fake:v1 says" in html
    assert "&#34;sure&#34;: true" in html
