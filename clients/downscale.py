"""The resize of a reward, done before the images travel: 1024x1024 pixels become 224x224."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from rewardzoo.clients.transport import Part
from rewardzoo.errors import RequestError
from rewardzoo.resize import PILLOW, ShortestAndCrop

NOTE = "downscale"
"""The key of provenance that tells the step."""


def downscaled(part: Part, told: str) -> tuple[Part, dict[str, str]]:
    """Return a part as it may travel by the step that a server tells, and what that adds to its provenance.

    Files, images that the step would enlarge, and a step that is not known here are left alone.

    Raises:
        RequestError: the server resizes with another release of Pillow than is here.
    """
    step = ShortestAndCrop.read(told)
    if step is None:
        return part, {}
    if str(step) != told:
        raise RequestError(
            f"the server's step is {told!r}, and another Pillow than {PILLOW}, which is here, may resize "
            "otherwise: install the same release on both sides, or leave downscale out"
        )
    # All payloads of a part are files, or pixels of one shape.
    small = [
        np.asarray(step(Image.fromarray(payload)))
        for payload in part.payloads
        if not isinstance(payload, bytes)
        and step.size <= min(payload.shape[:2])
        and step.size < max(payload.shape[:2])
    ]
    return (replace(part, payloads=small), {NOTE: told}) if small else (part, {})
