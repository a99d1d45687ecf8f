"""The transport over gRPC, on Triton's own client library: the same protocol in protobuf messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from rewardzoo.clients import wire
from rewardzoo.clients.process import PerProcess
from rewardzoo.clients.retries import error_of, time_left
from rewardzoo.clients.server import Answer, Declared, ServerTransport, Tensors, malformed
from rewardzoo.clients.tensors import DTYPES, binary, from_raw, shape_of
from rewardzoo.clients.transport import Part
from rewardzoo.errors import RequestError, TooLargeError, UnavailableError, require

require("tritonclient", extra="triton")
require("grpc", extra="triton")

import grpc  # noqa: E402
from google.protobuf.json_format import MessageToDict  # noqa: E402
from tritonclient.grpc import service_pb2 as messages  # noqa: E402
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub  # noqa: E402

MAX_MESSAGE = 2**31 - 1
"""Bytes in one message at most: protobuf's own limit, and what Triton takes."""
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # gRPC backs off for up to two minutes from a server that is away; `retrying` does that here.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # which is also how long a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 1000),
]
# As google.rpc.Code maps them, but that a server which stops answers ABORTED or CANCELLED.
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 400,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_RAW_INPUTS = b"\x3a"  # the tag of ModelInferRequest.raw_input_contents: field 7, of bytes
_CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}
_T = TypeVar("_T")


class GRPCTransport(ServerTransport):
    """Talks gRPC to `host:port`, with TLS where `secure`. Thread-safe.

    `authorities` are the certificates, in PEM, by which the server's is checked, instead of the usual ones.

    `token` goes out as a bearer token in the metadata `authorization`.
    """

    def __init__(
        self,
        target: str,
        *,
        secure: bool = False,
        authorities: bytes | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__()
        self._url = f"grpc{'s' * secure}://{target}"
        self._link = PerProcess(lambda: _Link(target, secure, authorities))
        self._headers = [("authorization", f"Bearer {token}")] if token else []

    def ready(self, *, timeout: float) -> bool:
        """Say whether the server answers now and has its weights loaded."""
        try:
            answer = self._link().stub.ServerReady(
                messages.ServerReadyRequest(), timeout=timeout, metadata=self._headers
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def close(self) -> None:
        """Close the connections."""
        if link := self._link.made():
            link.channel.close()

    def send(self, declared: Declared, part: Part, deadline: float) -> Answer:
        """Have a part scored by one request."""
        left = time_left(deadline, f"ModelInfer of {declared.model}")
        body = encode_request(declared.model, declared.inputs(part), timeout=left, request_id=part.id)
        if len(body) > MAX_MESSAGE:
            raise TooLargeError(
                f"the request has {len(body):,} bytes, gRPC takes {MAX_MESSAGE:,}: scale the image down"
            )
        answer = self._call(self._link().model_infer, body, deadline)
        try:
            tensors = _tensors(answer)
        except wire.WireError as error:
            raise malformed(self._url, error) from error
        return Answer(tensors, _parameters(answer.parameters), answer.model_name, self._url)

    def index(self, deadline: float) -> list[dict[str, Any]]:
        """Return the server's models."""
        answer = self._call(self._link().stub.RepositoryIndex, messages.RepositoryIndexRequest(), deadline)
        return list(_as_dict(answer).get("models", []))

    def metadata(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's metadata."""
        request = messages.ModelMetadataRequest(name=model)
        return _as_dict(self._call(self._link().stub.ModelMetadata, request, deadline))

    def config(self, model: str, deadline: float) -> dict[str, Any]:
        """Return a model's configuration."""
        request = messages.ModelConfigRequest(name=model)
        return dict(_as_dict(self._call(self._link().stub.ModelConfig, request, deadline)).get("config", {}))

    def _call(self, method: Callable[..., _T], request: Any, deadline: float) -> _T:
        left = time_left(deadline, f"a call of {self._url}")
        try:
            return method(request, timeout=_finite(left), metadata=self._headers)
        except grpc.RpcError as error:
            raise self._error(error) from error

    def _error(self, error: Any) -> RequestError | UnavailableError:
        code, details = error.code(), error.details() or "no reason given"
        text = f"{details} (gRPC {code.name} from {self._url})"
        if code is grpc.StatusCode.UNAVAILABLE:
            # Both of a server that is away and of Triton's full queue.
            if "queue size" in details:
                return error_of(503, text)
            return UnavailableError(f"cannot reach {self._url}: {details}")
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return error_of(413, text)
        return error_of(_HTTP_STATUS.get(code, 500), text)


class _Link:
    """The connection of one process."""

    def __init__(self, target: str, secure: bool, authorities: bytes | None) -> None:
        self.channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(authorities), _OPTIONS)
            if secure
            else grpc.insecure_channel(target, _OPTIONS)
        )
        self.stub = GRPCInferenceServiceStub(self.channel)
        # Not the stub's: it would copy each image into a message, and that once more into bytes.
        self.model_infer = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            response_deserializer=messages.ModelInferResponse.FromString,
        )


def encode_request(model: str, tensors: Tensors, *, timeout: float, request_id: str = "") -> bytes:
    """Return a serialised ModelInferRequest, every image copied once.

    `timeout` is in seconds. Triton drops a request whose time is up from its queue.
    """
    request = messages.ModelInferRequest(model_name=model, id=request_id)
    if math.isfinite(timeout):
        request.parameters["timeout"].int64_param = max(1, int(timeout * 1e6))
    chunks: list[wire.Chunk] = []
    for name, tensor in tensors.items():
        datatype, raw = binary(tensor)
        request.inputs.add(name=name, datatype=datatype, shape=shape_of(tensor))
        # A serialised message may be followed by more of its fields.
        chunks += [_RAW_INPUTS, _varint(sum(map(len, raw))), *raw]
    return b"".join([request.SerializeToString(), *chunks])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tensors(answer: Any) -> dict[str, wire.Tensor]:
    tensors = {}
    raws = answer.raw_output_contents
    if raws and len(raws) != len(answer.outputs):
        raise wire.WireError(f"{len(answer.outputs)} outputs, {len(raws)} of them with contents")
    for i, output in enumerate(answer.outputs):
        name, datatype, shape = output.name, output.datatype, list(output.shape)
        if any(size < 0 for size in shape):
            raise wire.WireError(f"tensor {name!r} has the shape {shape}")
        if raws:
            if datatype not in DTYPES and datatype != "BYTES":
                raise wire.WireError(f"tensor {name!r} is of datatype {datatype!r}")
            flat = from_raw(memoryview(raws[i]), datatype, math.prod(shape))
        else:
            flat = _typed(output)
        if flat.size != math.prod(shape):
            raise wire.WireError(f"tensor {name!r} has {flat.size} elements and the shape {shape}")
        tensors[name] = flat.reshape(shape)
    return tensors


def _typed(output: Any) -> wire.Tensor:
    """Read contents that are not raw, as servers other than Triton may send them."""
    if output.datatype not in _CONTENTS:
        raise wire.WireError(f"tensor {output.name!r} is of datatype {output.datatype!r}")
    values = list(getattr(output.contents, _CONTENTS[output.datatype]))
    if output.datatype == "BYTES":
        return wire.bytes_tensor(values)
    return np.array(values, dtype=DTYPES[output.datatype])


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {key: (value, value.WhichOneof("parameter_choice")) for key, value in parameters.items()}
    return {key: getattr(value, kind) for key, (value, kind) in chosen.items() if kind}


def _as_dict(message: Any) -> dict[str, Any]:
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None
