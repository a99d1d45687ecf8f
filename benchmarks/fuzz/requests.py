"""Requests that are valid, or nearly, with their structure, tensors, images, headers and framing spoilt."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from hypothesis import strategies as st

from benchmarks.fuzz.spoil import WEIRD, noise, picture, spoil
from rewardzoo.clients import wire

REWARD = "hpsv2:mini"
Headers = list[tuple[bytes, bytes]]


@dataclass
class Request:
    """One HTTP request, as it goes over a socket or into the app."""

    method: str
    path: str
    headers: Headers
    body: bytes


def tensors(rng: random.Random) -> dict[str, Any]:
    count = rng.choice([0, 1, 1, 2, 3])
    prompts = [rng.choice(["a cat", "", "é", "x" * 300, "a\0b", "  "]) for _ in range(count)]
    if rng.random() < 0.5:
        side = rng.choice([1, 7, 16])
        images: Any = np.frombuffer(rng.randbytes(count * side * side * 3), np.uint8)
        images = images.reshape(count, side, side, 3)
    else:
        files = [picture(rng, rng.choice(["PNG", "JPEG", "WEBP"])) for _ in range(count)]
        images = wire.bytes_tensor([noise(rng, f) if rng.random() < 0.5 else f for f in files])
    found = {wire.IMAGES: images, wire.PROMPTS: wire.bytes_tensor(prompts)}
    if rng.random() < 0.4:
        notes = [
            rng.choice(["", "{}", '{"step": 3}', "[]", "{", '{"a": NaN}', "[" * 900]) for _ in range(count)
        ]
        found[wire.METADATA] = wire.bytes_tensor(notes)
    if rng.random() < 0.2:
        found[wire.PROMPTS] = found[wire.PROMPTS].reshape(-1, 1)
    return found


def message(rng: random.Random) -> tuple[bytes, int]:
    """A message that is valid, or nearly: the bytes, and how many of them are JSON."""
    head = rng.choice([{}, {"id": "7"}, {"parameters": {"binary_data_output": True}}])
    given_tensors = tensors(rng)
    binary = [name for name in given_tensors if rng.random() < 0.8]
    try:
        chunks, length = wire.encode(head, given_tensors, key="inputs", binary=binary)
    except wire.WireError:  # bytes that are not UTF-8 have no form in JSON
        chunks, length = wire.encode(head, given_tensors, key="inputs")
    body = b"".join(chunks)
    if rng.random() < 0.6:
        header = json.loads(body[:length])
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            header = spoil(rng, header)
        text = json.dumps(header).encode()
        body, length = text + body[length:], len(text)
    if rng.random() < 0.3:
        body = noise(rng, body)
    if rng.random() < 0.1:
        length = rng.choice([0, 1, length - 1, length + 1, len(body), 2 * length])
    return body, length


PATHS = [
    "/v2/models/{}/infer", "/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/versions/1/infer",
    "/v2/models/{}/versions/9", "/v2", "/v2/health/ready", "/v2/repository/index", "/score", "/", "/metrics",
    "/docs.json", "/schema.json", "/v2/models/", "/v2/repository/models/{}/load", "/nope",
]  # fmt: skip
MODELS = [
    REWARD,
    "hpsv2",
    "nope",
    "hpsv2%3Amini",
    "..",
    "%00",
    "é",
    "a" * 2000,
    f"{REWARD}+{REWARD}",
    "+",
    " ",
]


def infer_request(rng: random.Random) -> Request:
    body, length = message(rng)
    headers: Headers = [(wire.HEADER.encode(), str(length).encode())]
    if rng.random() < 0.15:
        body, encoding = compressed(rng, body)
        headers.append((b"Content-Encoding", encoding))
    if rng.random() < 0.1:
        odd = [b"", b"-1", b"abc", b"1e3", b"9" * 40, b"\xff", b"0x10", b"1,2"]
        headers[0] = (wire.HEADER.encode(), rng.choice(odd))
    if rng.random() < 0.05:
        headers.append((b"X-Request-ID", rng.randbytes(20)))
    if rng.random() < 0.05:
        headers.append((b"Request-Timeout", rng.choice([b"0", b"-1", b"nan", b"inf", b"1e9", b"5"])))
    return Request("POST", f"/v2/models/{REWARD}/infer", headers, body)


def compressed(rng: random.Random, body: bytes) -> tuple[bytes, bytes]:
    packed = rng.choice([gzip.compress, zlib.compress])(body)
    if rng.random() < 0.5:
        packed = noise(rng, packed)
    if rng.random() < 0.1:
        packed = gzip.compress(packed)
    return packed, rng.choice([b"gzip", b"deflate", b"gzip", b"br", b"identity", b"gzip, gzip", b"\xff"])


def form_request(rng: random.Random) -> Request:
    files = [("images", (f"{i}.png", picture(rng, "PNG"), "image/png")) for i in range(rng.choice([0, 1, 2]))]
    data = {"prompts": json.dumps(["a"] * len(files)), "reward": REWARD, "metadata": "[]"}
    for name in list(data):
        match rng.randrange(8):
            case 0:
                del data[name]
            case 1:
                data[name] = json.dumps(rng.choice(WEIRD))
            case 2:
                data[name] = rng.choice(["", "[", "[1]", "http://127.0.0.1:1/a.png", "\0", "[" * 5000])
    built = httpx.Request("POST", "http://x/score", files=files or {"x": b""}, data=data)
    body, kind = built.read(), built.headers["Content-Type"].encode()
    if rng.random() < 0.4:
        body = noise(rng, body)
    if rng.random() < 0.2:
        kinds = [b"", b"=", b"=x", b"=" + b"a" * 5000, kind.partition(b"boundary")[2] + b"; charset=nope"]
        kind = rng.choice(
            [kind.upper(), b"application/json", b"text/plain", b"\xff", b"application/vnd.bentoml+pickle"]
            + [b"application/x-www-form-urlencoded", b"multipart/form-data", b"multipart/mixed; boundary=x"]
            + [b"multipart/form-data; boundary" + rest for rest in kinds]
        )
    return Request("POST", "/score", [(b"Content-Type", kind)], body)


def other_request(rng: random.Random) -> Request:
    method = rng.choice(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
    body = rng.choice([b"", b"{}", b'{"ready": true}', b"[", rng.randbytes(50)])
    path = rng.choice(PATHS).format(rng.choice(MODELS))
    return Request(method, path, [(b"Content-Type", b"application/json")] if rng.random() < 0.5 else [], body)


def raw(rng: random.Random, request: Request) -> bytes:
    """Write a request as HTTP/1.1, with its framing spoilt now and then."""
    headers = [(b"Host", b"x"), *request.headers]
    body = request.body
    match rng.randrange(8):
        case 0:
            headers.append((b"Transfer-Encoding", b"chunked"))
            size = rng.choice([b"%x" % len(body), b"ffffffffffffffff", b"-1", b"zz", b"%x" % (len(body) + 5)])
            body = size + b"\r\n" + body + b"\r\n0\r\n\r\n"
        case 1:
            wrong = [
                b"-1",
                b"abc",
                b"99999999999999999999",
                b"%d" % (len(body) + 9),
                b"%d" % (len(body) // 2),
            ]
            headers.append((b"Content-Length", rng.choice(wrong)))
        case 2:
            headers += [(b"Content-Length", b"%d" % len(body)), (b"Content-Length", b"7")]
        case 3:
            headers += [(b"X-%d" % i, b"y" * 100) for i in range(rng.choice([100, 1000]))]
        case _:
            headers.append((b"Content-Length", b"%d" % len(body)))
    path = request.path.encode("utf-8", "replace").replace(b" ", b"%20")
    head = request.method.encode() + b" " + path + b" HTTP/1.1\r\n"
    data = head + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n" + body
    return noise(rng, data[:400]) + data[400:] if rng.random() < 0.2 else data


@st.composite
def requests(draw: st.DrawFn) -> Request:
    make = draw(st.sampled_from([infer_request] * 6 + [form_request] * 2 + [other_request]))
    return make(random.Random(draw(st.integers(0, 2**64))))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, int]:
    return message(random.Random(draw(st.integers(0, 2**64))))
