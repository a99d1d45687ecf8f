"""What the page shows: pictures scored by several rewards, ranked, as HTML."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, Template
from PIL import Image

from rewardzoo.clients.images import decode_image
from rewardzoo.errors import ItemError, RewardZooError
from rewardzoo.services.batcher import Item
from rewardzoo.services.exchange import Deadline
from rewardzoo.services.form import make_item
from rewardzoo.services.limits import admit

if TYPE_CHECKING:
    from rewardzoo.rewards import Outcome
    from rewardzoo.services.host import Host

MAX_PICTURES = 256
_PREVIEW = 384  # pixels of the longer side


@dataclass(frozen=True)
class Column:
    """What one reward said of all pictures; `fault` where it said nothing."""

    name: str
    outcomes: Sequence[Outcome]
    places: Sequence[int]
    """Rank of each picture, from 1; those that failed come last."""
    provenance: dict[str, str]
    fault: str = ""


def empty() -> str:
    """Return what stands where the board will be."""
    return _template().render(empty=True)


async def board(
    host: Host, pictures: Sequence[tuple[str, bytes]], prompts: str, rewards: Sequence[str]
) -> str:
    """Score pictures, given as names and files, and return them ranked, as HTML.

    Whatever is wrong is said in it: with one picture beside that picture, with all at the top.
    """
    texts = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
    if fault := _fault(len(pictures), len(texts), rewards):
        return _template().render(faults=[fault])
    each = texts if len(texts) > 1 else texts * len(pictures)
    given = [make_item(data, prompt, {}) for (_, data), prompt in zip(pictures, each, strict=True)]
    items = await asyncio.to_thread(admit, given, host.config)
    deadline = Deadline(host.config.timeout)
    asked, shown = await asyncio.gather(
        asyncio.gather(*(_ask(host, name, items, deadline) for name in rewards)),
        asyncio.to_thread(lambda: [_preview(data) for _, data in pictures]),
    )
    columns = [column for column in asked if not column.fault]
    cards: list[dict[str, Any]] = [
        {
            "name": name,
            "prompt": prompt,
            "image": image,
            "places": [column.places[i] for column in columns],
            "outcomes": [column.outcomes[i] for column in columns],
        }
        for i, ((name, _), prompt, image) in enumerate(zip(pictures, each, shown, strict=True))
    ]
    if columns:
        cards.sort(key=lambda card: card["places"][0])
    return _template().render(
        faults=[f"{column.name}: {column.fault}" for column in asked if column.fault],
        columns=columns,
        cards=cards,
        several=len(texts) > 1,
        prompt=texts[0],
        facts=list(dict.fromkeys(key for column in columns for key in column.provenance)),
    )


def _fault(pictures: int, prompts: int, rewards: Sequence[str]) -> str:
    if not pictures:
        return "There is no picture: drop some, or choose them."
    if pictures > MAX_PICTURES:
        return f"{pictures} pictures are more than the {MAX_PICTURES} that fit here: use RewardClient."
    if not rewards:
        return "No reward is chosen: tick one or more."
    if prompts not in (1, pictures):
        return f"{prompts} prompts and {pictures} pictures: give one prompt for all, or one a line for each."
    return ""


async def _ask(host: Host, name: str, items: Sequence[Item | ItemError], deadline: Deadline) -> Column:
    try:
        reward = host.find(name)
        outcomes = await reward.score(items, deadline.left)
    except RewardZooError as error:
        return Column(name, [], [], {}, str(error))
    sign = -1 if reward.spec.higher_is_better else 1

    def key(i: int) -> tuple[bool, float]:
        outcome = outcomes[i]
        return (True, 0.0) if isinstance(outcome, ItemError) else (False, sign * outcome.value)

    places = [0] * len(items)
    for place, i in enumerate(sorted(range(len(items)), key=key), start=1):
        places[i] = place
    return Column(reward.name, outcomes, places, reward.provenance())


def _preview(data: bytes) -> str | None:
    try:
        image = Image.fromarray(decode_image(data))
    except ItemError:
        return None
    image.thumbnail((_PREVIEW, _PREVIEW))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("rewardzoo.services", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["failed"] = lambda outcome: isinstance(outcome, ItemError)
    environment.filters["details"] = lambda details: json.dumps(details, ensure_ascii=False, indent=1)
    return environment.get_template("board.html.j2")
