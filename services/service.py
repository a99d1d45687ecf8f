"""The factory of BentoML services: every one hosts some rewards behind the same routes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import bentoml
from starlette.responses import Response

from rewardzoo.errors import UnavailableError
from rewardzoo.services import logs
from rewardzoo.services.access_log import AccessLog
from rewardzoo.services.bento import RewardService
from rewardzoo.services.config import ServeConfig
from rewardzoo.services.exchange import answer
from rewardzoo.services.form import ScoreForm, ScoreReply, score_form
from rewardzoo.services.front import Login, Page, Pages
from rewardzoo.services.gate import Gate, check_address, listening_addresses
from rewardzoo.services.routes import make_app

if TYPE_CHECKING:
    from rewardzoo.services.host import Load, Resolve

logger = logging.getLogger(__name__)


_FAREWELL = 1.0  # seconds that answers have to leave before the process ends
_LOST = 70  # exit status, EX_SOFTWARE of sysexits.h


def make_service(
    name: str,
    rewards: Sequence[str] = (),
    *,
    load: Load | None = None,
    resolve: Resolve | None = None,
) -> bentoml.Service[Any]:
    """Return a BentoML service that hosts the rewards of its `ServeConfig`, or else `rewards`.

    The config is read and weights are loaded when BentoML makes the service's instance, and it is
    ready only after that. `load` and `resolve` are for tests; they stand in for those of `rewardzoo.rewards`.
    """
    app = make_app()
    page = Page(app.state)

    class Rewards:
        """Scores image-prompt pairs: Open Inference Protocol under /v2, a form at /score."""

        def __init__(self) -> None:
            try:
                config = ServeConfig()
                if _is_supervised():  # else the process is not ours
                    logs.configure(config.log_format)
                for address in listening_addresses():
                    check_address(config, address)
                page.switch(config)
                # BentoML sets it, and would have every metric written to files that servers share.
                os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
                # Here, because BentoML's supervisor imports this module too and has no use for torch.
                from rewardzoo import rewards as zoo
                from rewardzoo.services.host import Host
                from rewardzoo.services.metrics import Metrics

                app.state.metrics = Metrics()
                self.host = app.state.host = Host.load(
                    config,
                    rewards,
                    load or zoo.load,
                    resolve or zoo.resolve,
                    observer=app.state.metrics,
                    on_lost=_end_process,
                )
            except Exception as error:
                _give_up(error)
                raise

        @bentoml.on_startup  # type: ignore[untyped-decorator]
        async def start(self) -> None:
            await self.host.start()
            await page.start()

        @bentoml.on_shutdown  # type: ignore[untyped-decorator]
        async def stop(self) -> None:
            await self.host.stop()
            await page.close()

        @bentoml.api(input_spec=ScoreForm, output_spec=ScoreReply)  # type: ignore[untyped-decorator]
        async def score(self, ctx: bentoml.Context, **_: Any) -> Response:
            """Score images against prompts, one score a pair.

            curl -F images=@a.png -F images=@b.png -F 'prompts=["a cat", "a dog"]' \\
                -F reward=hpsv2:mini http://127.0.0.1:3000/score
            """
            response = await answer(score_form(ctx.request, self.host))
            # BentoML puts the context's status over the response's own.
            ctx.response.status_code = response.status_code
            return response

    # One process a device: BentoML's workers do not balance, and each would hold the weights again.
    # Without a host BentoML would listen to every network.
    service = bentoml.service(
        name=name,
        workers=1,
        http={"host": "127.0.0.1"},
        logging={"access": {"enabled": False}},  # `AccessLog` writes the one line
        metrics={"enabled": False},  # `metrics` says why
        service_class=RewardService,
    )(Rewards)
    service.mount_asgi_app(app)
    service.add_asgi_middleware(AccessLog, state=app.state)
    service.add_asgi_middleware(Login)
    service.add_asgi_middleware(Gate, state=app.state)
    service.add_asgi_middleware(Pages, page=page)
    return service


def _give_up(error: Exception) -> None:
    """End the whole server: BentoML's supervisor would start the failing worker for ever."""
    logger.critical("cannot serve: %s", error)
    if _is_supervised():
        os.kill(os.getppid(), signal.SIGTERM)


def _end_process(error: UnavailableError) -> None:
    """End this process, whose device is lost: its supervisor starts a new one.

    At once, after a moment for the answers: no handler could do anything in a broken CUDA context but hang.
    """
    if _is_supervised():
        logger.critical("ends with status %d: %s", _LOST, error)
        # A thread of its own, in case that the event loop hangs.
        threading.Timer(_FAREWELL, os._exit, (_LOST,)).start()


def _is_supervised() -> bool:
    return bentoml.server_context.worker_index is not None
