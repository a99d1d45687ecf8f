"""A server of the protocol over gRPC, for the tests of the client."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from rewardzoo.clients import wire
from rewardzoo.clients.tensors import binary, from_raw, shape_of

Code = grpc.StatusCode


class FakeTriton(GRPCInferenceServiceServicer):
    """Serves the reward sum:v1 as Triton would: a score is the sum of the image's bytes."""

    def __init__(self) -> None:
        self.max_batch = 64
        self.inputs = {"images": 4, "image_files": 2, "prompts": 2, "metadata": 2}
        self.script: list[Callable[[Any], Any]] = []
        self.seen: list[dict[str, wire.Tensor]] = []
        self.requests: list[Any] = []
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.models = [("sum.v1", "READY"), ("late.v1", "UNAVAILABLE")]
        self.is_ready = True

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerReadyResponse(ready=self.is_ready)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = messages.RepositoryIndexResponse()
        for name, state in self.models:
            answer.models.add(name=name, version="1", state=state)
        return answer

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request.name)
        if request.name != "sum.v1":
            context.abort(Code.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        answer = messages.ModelMetadataResponse(name=request.name, platform="python")
        for name, dims in self.inputs.items():
            answer.inputs.add(name=name, datatype="BYTES", shape=[-1] * dims)
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = messages.ModelConfigResponse()
        answer.config.name = request.name
        answer.config.max_batch_size = self.max_batch
        answer.config.parameters["name"].string_value = "sum:v1"
        answer.config.parameters["recipe"].string_value = "sum"
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.headers.append(dict(context.invocation_metadata()))
        self.requests.append(request)
        if self.script:
            return self.script.pop(0)(context)
        tensors = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            flat = from_raw(memoryview(raw), tensor.datatype, int(np.prod(tensor.shape)))
            tensors[tensor.name] = flat.reshape(list(tensor.shape))
        self.seen.append(tensors)
        images = tensors["images" if "images" in tensors else "image_files"]
        bodies = list(images.flat) if images.dtype == object else [x.tobytes() for x in images]
        return answer_of(
            scores=np.array([[np.frombuffer(b, np.uint8).sum()] for b in bodies], np.float32),
            errors=wire.bytes_tensor([b"bad" if p == b"fail" else b"" for p in tensors["prompts"].flat]),
            provenance=wire.bytes_tensor(['{"recipe": "sum"}', *[""] * (len(bodies) - 1)])[:, None],
        )


def answer_of(parameters: dict[str, str] | None = None, **tensors: wire.Tensor) -> Any:
    answer = messages.ModelInferResponse()
    for key, value in (parameters or {}).items():
        answer.parameters[key].string_param = value
    for name, tensor in tensors.items():
        datatype, chunks = binary(tensor)
        answer.outputs.add(name=name, datatype=datatype, shape=shape_of(tensor))
        answer.raw_output_contents.append(b"".join(chunks))
    return answer


def fails(code: Any, details: str = "because", wait: float = 0.0) -> Callable[[Any], None]:
    def fail(context: Any) -> None:
        time.sleep(wait)
        context.abort(code, details)

    return fail


class Running:
    def __init__(self, servicer: FakeTriton, port: int = 0, limit: int = -1) -> None:
        self.pool = ThreadPoolExecutor(4)
        options = [("grpc.max_receive_message_length", limit), ("grpc.so_reuseport", 0)]
        self.server = grpc.server(self.pool, options=options)
        add_GRPCInferenceServiceServicer_to_server(servicer, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()
        self.url = f"grpc://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.stop(0).wait()
        self.pool.shutdown()
