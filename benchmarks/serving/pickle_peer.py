"""The peer: a reward server as flow_grpo's are, with a reward that costs nothing.

Flask under gunicorn, one worker; JPEG files in a pickle in, a pickle out. It is here to be measured, and
must never listen to a network: whoever can reach a server that unpickles owns it (CVE-2026-25873).
"""

from __future__ import annotations

import io
import pickle

import numpy as np
from flask import Flask, request
from PIL import Image

app = Flask(__name__)


def message(files: list[bytes], prompts: list[str]) -> bytes:
    """What its clients send."""
    return pickle.dumps({"images": files, "prompts": prompts})


@app.get("/")
def ready() -> str:
    return "ready"


@app.post("/")
def score() -> bytes:
    body = pickle.loads(request.get_data())  # noqa: S301  # what the peer does
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in body["images"]]
    return pickle.dumps({"outputs": [float(np.asarray(image)[0, 0, 0]) for image in images]})
