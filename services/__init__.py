"""The rewards behind BentoML.

`bentoml serve rewardzoo.services:Zoo --host 127.0.0.1` hosts what `REWARDZOO_*` say, see
`ServeConfig`; the other services are one a family of rewards, each with a default of its own.
"""

from rewardzoo.errors import require

require("bentoml", extra="serve")
require("pydantic_settings", extra="serve")

from rewardzoo.services.config import ServeConfig  # noqa: E402
from rewardzoo.services.service import make_service  # noqa: E402

HPS = make_service("HPS", ["hpsv2:v2.1"])
ImageReward = make_service("ImageReward", ["imagereward:v1.0"])
PickScore = make_service("PickScore", ["pickscore:v1"])
VQA = make_service("VQA", ["vqascore:clip-flant5-xl"])
Critic = make_service("Critic", ["orm:imagegen-cot"])
Zoo = make_service("Zoo")

__all__ = [
    "HPS",
    "VQA",
    "Critic",
    "ImageReward",
    "PickScore",
    "ServeConfig",
    "Zoo",
    "make_service",
]
