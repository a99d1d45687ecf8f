"""Our messages against the public `tritonclient`, an implementation that is not ours."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rewardzoo.clients import wire

triton = pytest.importorskip("tritonclient.http")

PIXELS = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


@pytest.mark.parametrize("binary", [True, False])
def test_requests_of_tritonclient_are_understood(binary: bool) -> None:
    prompts = np.array(["é".encode(), b"b"], dtype=object)
    images_in = triton.InferInput("images", [2, 3, 4, 3], "UINT8")
    images_in.set_data_from_numpy(PIXELS, binary_data=binary)
    prompts_in = triton.InferInput("prompts", [2], "BYTES")
    prompts_in.set_data_from_numpy(prompts, binary_data=binary)
    client = triton.InferenceServerClient
    body, length = client.generate_request_body([images_in, prompts_in])
    message = wire.decode(body, length, key="inputs")
    assert_array_equal(message.tensors["images"], PIXELS)
    assert message.tensors["prompts"].tolist() == prompts.tolist()
    assert wire.requested_outputs(message.header, ["scores"]) == {"scores": True}

    outputs = [triton.InferRequestedOutput("scores", binary_data=binary)]
    body, length = client.generate_request_body([images_in, prompts_in], outputs=outputs)
    message = wire.decode(body, length, key="inputs")
    assert wire.requested_outputs(message.header, ["scores", "errors"]) == {"scores": binary}


@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_understood_by_tritonclient(binary: bool) -> None:
    scores = np.array([0.1, 2.0], np.float32)
    tensors = {"scores": scores, "errors": wire.bytes_tensor(["", "é"])}
    chunks, length = wire.encode({}, tensors, key="outputs", binary=tensors if binary else [])
    result = triton.InferenceServerClient.parse_response_body(
        b"".join(chunks), header_length=length if binary else None
    )
    assert_array_equal(result.as_numpy("scores"), scores)
    errors = [e if isinstance(e, bytes) else e.encode() for e in result.as_numpy("errors")]
    assert errors == [b"", "é".encode()]
