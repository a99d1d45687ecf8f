"""What a browser meets: the page at `/`, BentoML's own page at `/docs`, and how the token gets in."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import tempfile
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders, State
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewardzoo.errors import require

if TYPE_CHECKING:
    from rewardzoo.services.config import ServeConfig
    from rewardzoo.services.host import Host

logger = logging.getLogger("bentoml.serve")  # whose INFO a server shows

DOCS = "/docs"
QUEUES = "/page/queues"
# All that Gradio's page asks for. What else Gradio can do (serve files, fetch for others, run functions
# by name, edit its own code) is not reachable.
_GETS = frozenset(
    {QUEUES, "/", "/theme.css", "/favicon.ico", "/gradio_api/upload_progress", "/gradio_api/queue/data"}
)
_UPLOAD = "/gradio_api/upload"
_POSTS = frozenset({_UPLOAD, "/gradio_api/queue/join"})
_FILES = ("/assets/", "/static/")
_BENTOML = frozenset({"/docs.json", "/schema.json", DOCS})
_UPLOAD_SHARE = 8  # times the largest body; uploads are deleted after an hour
# Neither page may load or tell anything elsewhere: BentoML's has a tag manager in it.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def _is_page(scope: Scope) -> bool:
    path, method = scope["path"], scope["method"]
    if method == "POST":
        return path in _POSTS
    return method in ("GET", "HEAD") and (path in _GETS or path.startswith(_FILES))


def _is_docs(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in _BENTOML or path.startswith("/static_content/"))


class Login:
    """ASGI middleware before `Gate`: lets a browser send the token as the password of HTTP Basic.

    It holds for the pages alone. A browser adds a password it knows to whatever any site makes it
    send, so the API takes none, and the page's own POSTs are refused when another site made them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as if it had the header that `Gate` wants."""
        if scope["type"] != "http" or not (_is_page(scope) or _is_docs(scope)):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return await JSONResponse({"error": "another site made this request"}, 403)(scope, receive, send)
        password = _password(headers.get("authorization", ""))
        if password is not None:
            others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
            scope = {**scope, "headers": [*others, (b"authorization", b"Bearer " + password)]}

        async def ask(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                MutableHeaders(scope=message)["WWW-Authenticate"] = 'Basic realm="rewardzoo: the token"'
            await send(message)

        return await self.app(scope, receive, ask)


class Page:
    """The Gradio page of one service; built when it is first asked for, unless the config says "on".

    So a server on which nobody opens it pays neither the time nor the memory of Gradio's import.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.on = self._at_start = False
        self._app: ASGIApp | None = None
        self._building = asyncio.Lock()
        self._closing = AsyncExitStack()
        self._uploads = Path()

    def switch(self, config: ServeConfig) -> None:
        """Decide whether there is a page, from the config and what is installed.

        Raises:
            MissingExtraError: the config wants it and Gradio is not installed.
        """
        if config.ui == "on":
            require("gradio", extra="ui")
        self._at_start = config.ui == "on"
        self.on = config.ui != "off" and find_spec("gradio") is not None
        if config.ui == "auto" and not self.on:
            logger.info("no page at /: pip install 'rewardzoo[ui]' brings it")

    async def start(self) -> None:
        """Build the page now, where the config says so."""
        if self._at_start:
            await self._built()

    async def close(self) -> None:
        """End what the page has running and delete what was uploaded to it."""
        await self._closing.aclose()
        self._app = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one of the page's requests."""
        if scope["path"] == QUEUES:
            return await self._queues()(scope, receive, send)
        app = await self._built()
        refusal = self._refusal(scope) if scope["method"] == "POST" else None
        return await (refusal or app)(scope, receive, send)

    async def _built(self) -> ASGIApp:
        async with self._building:
            if self._app is None:
                self._app = await self._build()
            return self._app

    async def _build(self) -> ASGIApp:
        folder = self._closing.enter_context(
            tempfile.TemporaryDirectory(prefix="rewardzoo-page-", ignore_cleanup_errors=True)
        )
        self._uploads = Path(folder)
        # Gradio asks the environment, at import and later.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        app = await asyncio.to_thread(self._import_and_mount)
        await self._closing.enter_async_context(app.router.lifespan_context(app))
        found: ASGIApp = app
        return found

    def _import_and_mount(self) -> Any:
        from rewardzoo.services.page import mount

        return mount(self.state)

    def _queues(self) -> Response:
        host: Host = self.state.host
        figures = [
            {"name": name, "waiting": reward.waiting, "scored": reward.scored, "ready": reward.ready}
            for name, reward in host.rewards.items()
        ]
        return JSONResponse(figures, headers={"Cache-Control": "no-store"})

    def _refusal(self, scope: Scope) -> Response | None:
        host: Host = self.state.host
        limit = host.config.max_body
        length = Headers(scope=scope).get("content-length")
        if length is None:
            return PlainTextResponse("send a Content-Length", 411)
        if int(length) > limit:
            return PlainTextResponse(
                f"{int(length):,} bytes at once, the limit is {limit:,}: upload fewer pictures", 413
            )
        if scope["path"] == _UPLOAD:
            used = sum(file.stat().st_size for file in self._uploads.rglob("*") if file.is_file())
            if used + int(length) > _UPLOAD_SHARE * limit:
                return PlainTextResponse("too much was uploaded in the last hour: try again later", 503)
        return None


class Pages:
    """ASGI middleware behind `Gate`: the page at `/` where there is one, BentoML's at `/docs` always."""

    def __init__(self, app: ASGIApp, page: Page) -> None:
        self.app, self.page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to whom it belongs."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def confine(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = _POLICY
            await send(message)

        if self.page.on and _is_page(scope):
            return await self.page(scope, receive, confine)
        if _is_docs(scope) and scope["path"] == DOCS:
            # BentoML has its page at / and knows no other place for it.
            return await self.app({**scope, "path": "/", "raw_path": b"/"}, receive, confine)
        return await self.app(scope, receive, confine if scope["path"] == "/" else send)


def _password(authorization: str) -> bytes | None:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return None
