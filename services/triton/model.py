"""A reward as a model of Triton's Python backend. `rewardzoo triton-export` copies this file as it is.

Triton imports it in the Python of its backend, which needs `rewardzoo[models]`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as triton

from rewardzoo.clients import wire
from rewardzoo.clients.images import Payload
from rewardzoo.clients.in_process import InProcess
from rewardzoo.clients.transport import Part, Reply, joined
from rewardzoo.errors import ItemError
from rewardzoo.rewards import load


class TritonPythonModel:
    """What Triton's Python backend looks for: one instance of a reward, on one device."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the reward that the model's configuration names."""
        _check_numpy()
        parameters = json.loads(args["model_config"])["parameters"]
        told = {key: value["string_value"] for key, value in parameters.items()}
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        model = load(told["name"], device=device, weights=told.get("weights"))
        self._name = told["name"]
        self._rewards = InProcess({self._name: model})

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Score what Triton merged, together; each request gets the answer to its own items."""
        parts = [_read(request) for request in requests]
        reply = self._score([item for part in parts if isinstance(part, list) for item in part])
        answers, start = [], 0
        for part in parts:
            if isinstance(part, list):
                answers.append(_answer(reply, start, start + len(part)))
                start += len(part)
            else:
                answers.append(triton.InferenceResponse(error=part))
        return answers

    def _score(self, items: Sequence[_Item]) -> Reply:
        """Score items, halving them when the model raises until the item at fault is alone."""
        errors: dict[int, str] = {}
        prompts: dict[int, str] = {}
        for i, (_, prompt, _) in enumerate(items):
            try:
                prompts[i] = wire.decode_prompt(prompt)
            except ItemError as error:
                errors[i] = str(error)
        rows = list(prompts)
        part = Part([items[i][0] for i in rows], list(prompts.values()), [items[i][2] for i in rows])
        try:
            reply = self._rewards.infer(self._name, part)
        except torch.AcceleratorError:
            # Triton would call this model ready for ever; its supervisor starts it anew.
            os.kill(os.getppid(), signal.SIGTERM)
            raise
        except Exception as error:
            if len(items) > 1:
                half = len(items) // 2
                return joined([self._score(items[:half]), self._score(items[half:])])
            return Reply([np.nan], {0: f"scoring failed with {type(error).__name__}: {error}"})
        scores = np.full(len(items), np.nan)
        scores[rows] = reply.scores
        errors.update((rows[i], text) for i, text in reply.errors.items())
        details = {rows[i]: said for i, said in reply.details.items()}
        return Reply(scores.tolist(), errors, reply.provenance, details)


_Item = tuple[Payload, bytes, bytes]
"""Pixels or a file, the prompt, and the metadata or nothing."""


def _read(request: Any) -> list[_Item] | Any:
    """Return a request's items, or the `TritonError` that it is answered with."""
    if request.is_cancelled():
        return triton.TritonError("the caller is gone", triton.TritonError.CANCELLED)
    given = {
        name: tensor.as_numpy()
        for name in (wire.IMAGES, wire.IMAGE_FILES, wire.PROMPTS, wire.METADATA)
        if (tensor := triton.get_input_tensor_by_name(request, name)) is not None
    }
    if (wire.IMAGES in given) == (wire.IMAGE_FILES in given):
        return triton.TritonError(
            f"give either {wire.IMAGES!r} or {wire.IMAGE_FILES!r}", triton.TritonError.INVALID_ARG
        )
    images = given[wire.IMAGES] if wire.IMAGES in given else given[wire.IMAGE_FILES].reshape(-1)
    prompts = given[wire.PROMPTS].reshape(-1)
    notes = given[wire.METADATA].reshape(-1) if wire.METADATA in given else [b""] * len(prompts)
    return list(zip(images, prompts, notes, strict=True))


def _answer(reply: Reply, start: int, end: int) -> Any:
    rows = range(start, end)
    # Answers of Triton have no parameters before 2.52: the first item has what all scores rest on.
    provenance = json.dumps(reply.provenance) if reply.provenance else ""
    texts = {
        wire.ERRORS: [reply.errors.get(i, "") for i in rows],
        wire.DETAILS: [wire.encode_object(reply.details.get(i, {})) for i in rows],
        wire.PROVENANCE: [provenance if i == start else "" for i in rows],
    }
    scores = np.array(reply.scores[start:end], np.float32).reshape(-1, 1)
    columns = {name: wire.bytes_tensor(values)[:, None] for name, values in texts.items()}
    return triton.InferenceResponse(
        [triton.Tensor(name, column) for name, column in {wire.SCORES: scores, **columns}.items()]
    )


def _check_numpy() -> None:
    # A backend built before NumPy 2 reads its arrays wrongly: texts arrive garbled, and then it dies.
    triton.Tensor("probe", np.zeros(1, np.float32))
    if int(np.__version__.split(".")[0]) >= 2 and "numpy.core.multiarray" in sys.modules:
        raise RuntimeError(
            f"this Triton's Python backend was built for NumPy 1 and found NumPy {np.__version__}: "
            "pip install 'numpy<2' in its Python, or use a later Triton"
        )
