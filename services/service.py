"""The factory of BentoML services: every one hosts some rewards behind the same routes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import bentoml
from starlette.responses import Response

from rewardzoo.services import logs, supervision
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
                if supervision.is_supervised():  # else the process is not ours
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
                    on_lost=supervision.end_process,
                )
            except Exception as error:
                supervision.give_up(error)
                raise

        @bentoml.on_startup  # type: ignore[untyped-decorator]
        async def start(self) -> None:
            supervision.follow_supervisor()
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
