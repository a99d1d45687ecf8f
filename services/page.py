"""The page at `/`: drop pictures, say what they should show, see them ranked.

Imported by `front` alone, and only when somebody opens the page: it brings in Gradio.
"""

from __future__ import annotations

import asyncio
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import State

from rewardzoo import __version__
from rewardzoo.services.board import board, empty

if TYPE_CHECKING:
    from rewardzoo.services.host import Host

_KEEP = 3600  # seconds that an upload stays
_HEAD = f"""
<h1>rewardzoo</h1>
<p>Score pictures against what they should show. <a href="docs">HTTP API</a> · version {__version__}</p>
"""


def mount(state: State) -> FastAPI:
    """Return the page as an ASGI app that must be given its lifespan. `state.host` is the host."""
    host: Host = state.host
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        make_page(state),
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=host.config.max_body,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=_resource("page.css"),
        head=f"<script>{_resource('page.js')}</script>",
    )


def make_page(state: State) -> gr.Blocks:
    """Return the page for the rewards of `state.host`, as they are whenever it is loaded."""
    host: Host = state.host

    async def score(files: list[str] | None, prompts: str, rewards: list[str]) -> str:
        read = await asyncio.to_thread(lambda: [(Path(f).name, Path(f).read_bytes()) for f in files or []])
        return await board(host, read, prompts, rewards)

    def hosted() -> Any:
        return gr.CheckboxGroup(choices=list(host.rewards))

    with gr.Blocks(
        title="rewardzoo",
        analytics_enabled=False,
        delete_cache=(_KEEP // 12, _KEEP),
        fill_width=True,
    ) as page:
        gr.HTML(_HEAD, elem_id="head", apply_default_css=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="ask"):
                pictures = gr.File(
                    label="Pictures: PNG, JPEG, WebP",
                    file_count="multiple",
                    file_types=[".png", ".jpg", ".jpeg", ".webp"],
                    height=190,
                    elem_id="pictures",
                )
                _accept_only_uploads(pictures)
                prompt = gr.Textbox(
                    label="Prompt",
                    info="One for all pictures, or one a line for each picture in turn.",
                    placeholder="a red circle left of a blue square",
                    lines=2,
                    max_lines=8,
                    elem_id="prompt",
                )
                names = list(host.rewards)
                rewards = gr.CheckboxGroup(names, value=names[:1], label="Rewards", elem_id="rewards")
                button = gr.Button("Score", variant="primary", elem_id="score")
                gr.HTML('<table id="queues"></table>', apply_default_css=False)
            with gr.Column(scale=3, min_width=300):
                result = gr.HTML(empty(), elem_id="result", apply_default_css=False)
        ask = {"fn": score, "inputs": [pictures, prompt, rewards], "outputs": result}
        button.click(**ask, scroll_to_output=True, concurrency_limit=None, api_visibility="private")
        page.load(hosted, outputs=rewards, show_progress="hidden", api_visibility="private")
    page.queue(max_size=64, api_open=False)
    return page


def _accept_only_uploads(component: gr.File) -> None:
    """Refuse whatever else a request names as its file.

    Gradio would fetch a URL, and in an app that is mounted and not launched it checks no path.
    """
    folder = Path(component.GRADIO_CACHE).resolve()

    async def keep(path: str) -> str:
        file = Path(path).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise gr.Error("A picture must be uploaded; those of an hour ago are deleted: drop it again.")
        return str(file)

    # This is where Gradio copies into its cache, in which an upload lies already.
    setattr(component, "async_move_resource_to_block_cache", keep)  # noqa: B010


def _resource(name: str) -> str:
    return resources.files("rewardzoo.services").joinpath(name).read_text()


def _theme() -> gr.Theme:
    theme = gr.themes.Base(
        primary_hue="slate",
        neutral_hue="gray",
        font=["system-ui", "sans-serif"],  # Gradio's own would come from its server, others from Google's
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )
