from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rewardzoo.clients import wire
from rewardzoo.clients.tensors import DTYPES
from rewardzoo.errors import ItemError

PIXELS = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def round_trip(tensor: wire.Tensor, *, binary: bool) -> wire.Tensor:
    chunks, length = wire.encode({}, {"t": tensor}, key="inputs", binary=["t"] if binary else [])
    return wire.decode(b"".join(chunks), length, key="inputs").tensors["t"]


def message(entry: dict[str, Any], raw: bytes = b"") -> tuple[bytes, int]:
    base = {"name": "t", "shape": [2], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**base, **entry}]}).encode()
    return head + raw, len(head)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_every_numeric_datatype_comes_back_as_it_was(datatype: str, binary: bool) -> None:
    tensor = np.array([[0, 1, 1], [1, 0, 1]]).astype(DTYPES[datatype])
    back = round_trip(tensor, binary=binary)
    assert back.dtype == tensor.dtype
    assert_array_equal(back, tensor)


@pytest.mark.parametrize("binary", [True, False])
def test_bytes_tensors_keep_empty_elements_and_trailing_zeros(binary: bool) -> None:
    tensor = wire.bytes_tensor(["é", b"", b"a\0\0"])
    assert round_trip(tensor, binary=binary).tolist() == ["é".encode(), b"", b"a\0\0"]


@pytest.mark.parametrize("binary", [True, False])
def test_empty_tensors_keep_their_shape(binary: bool) -> None:
    assert round_trip(np.zeros((0, 3, 2), np.uint8), binary=binary).shape == (0, 3, 2)


def test_nan_in_json_is_null_and_comes_back_as_nan() -> None:
    chunks, length = wire.encode(
        {}, {"scores": np.array([0.1, np.nan, np.inf], np.float32)}, key="outputs", binary=[]
    )
    assert json.loads(chunks[0], parse_constant=pytest.fail)["outputs"][0]["data"][1:] == [None] * 2
    scores = wire.decode(bytes(chunks[0]), None, key="outputs").tensors["scores"]
    assert_array_equal(scores, np.array([0.1, np.nan, np.nan], np.float32))
    assert length == len(chunks[0])


def test_pixels_are_copied_neither_way() -> None:
    chunks, length = wire.encode({}, {"images": PIXELS}, key="inputs")
    assert np.shares_memory(np.frombuffer(chunks[1], np.uint8), PIXELS)
    body = bytearray(b"".join(chunks))
    images = wire.decode(body, length, key="inputs").tensors["images"]
    assert np.shares_memory(images, np.frombuffer(body, np.uint8))
    assert_array_equal(images, PIXELS)


def test_strided_and_big_endian_arrays_are_sent_by_value() -> None:
    assert_array_equal(round_trip(PIXELS[:, ::2, ::-1], binary=True), PIXELS[:, ::2, ::-1])
    big = np.array([1.5, -2.0], dtype=">f4")
    assert_array_equal(round_trip(big, binary=True), big)


def test_nested_json_data_is_flattened() -> None:
    body, _ = message({"shape": [2, 2], "data": [[1, 2.5], [None, 4]]})
    tensor = wire.decode(body, None, key="inputs").tensors["t"]
    assert_array_equal(tensor, np.array([[1, 2.5], [np.nan, 4]], np.float32))


@pytest.mark.parametrize(
    ("entry", "raw", "says"),
    [
        ({"data": [1.0]}, b"", "the shape means 2 elements, 'data' has 1"),
        ({"data": [1.0, "x"]}, b"", "found 'x'"),
        ({"data": 3}, b"", "'data' must be a list, got int"),
        ({"data": [1, 2], "datatype": "BYTES"}, b"", "does not fit BYTES: found 1"),
        ({"data": ["\ud800", ""], "datatype": "BYTES"}, b"", "does not fit BYTES"),
        ({"data": [1, 256], "datatype": "UINT8"}, b"", "256 is not in 0..255"),
        ({"data": [True, 1], "datatype": "UINT8"}, b"", "found True"),
        ({"data": [10**400, 1]}, b"", "does not fit FP32"),
        ({}, b"", "give either 'data' or 'parameters.binary_data_size'"),
        ({"datatype": "BF16", "data": [1, 2]}, b"", "got 'BF16'"),
        ({"shape": [-2], "data": [1, 2]}, b"", "'shape' must list sizes"),
        ({"shape": [2.0], "data": [1, 2]}, b"", "'shape' must list sizes"),
        ({"shape": [2**31], "data": [1, 2]}, b"", "'shape' must list sizes"),
        ({"shape": [2**30] * 8, "data": [1, 2]}, b"", "'data' has 2"),
        ({"shape": [2**30] * 8 + [0], "data": []}, b"", "is not possible"),
        ({"shape": [1] * 99, "data": [1]}, b"", "'shape' must list sizes"),
        ({"parameters": [], "data": [1, 2]}, b"", "'parameters' must be an object"),
        ({"parameters": {"binary_data_size": 8}}, b"1234567", "7 bytes are left"),
        ({"parameters": {"binary_data_size": -1}}, b"", "'binary_data_size' is -1"),
        ({"parameters": {"binary_data_size": True}}, b"1", "'binary_data_size' is True"),
        ({"parameters": {"binary_data_size": 4}}, b"1234", "FP32 are 8 bytes, got 4"),
        ({"parameters": {"binary_data_size": 8}}, b"123456789", "1 bytes follow"),
        ({"parameters": {"shared_memory_region": "x"}}, b"", "shared memory is not supported"),
        (
            {"datatype": "BYTES", "parameters": {"binary_data_size": 8}},
            b"\0\0\0\0\5\0\0\0",
            "read 1 in 4",
        ),
    ],
)
def test_a_malformed_tensor_is_refused_by_name(entry: dict[str, Any], raw: bytes, says: str) -> None:
    body, length = message(entry, raw)
    with pytest.raises(wire.WireError, match=r"tensor 't'|bytes follow") as error:
        wire.decode(body, length, key="inputs")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("body", "length", "says"),
    [
        (b"{", None, "not JSON"),
        (b"\xff", None, "not JSON"),
        (b"[" * 100_000, None, "not JSON"),
        (b"[]", None, "must be a JSON object, got list"),
        (b"{}", 3, "the body has 2 bytes"),
        (b"{}", -1, "the body has 2 bytes"),
        (b'{"inputs": {}}', None, "'inputs' must be a list of objects"),
        (b'{"inputs": [{"name": 3}]}', None, "needs a 'name'"),
        (b'{"parameters": 3}', None, "'parameters' must be an object"),
    ],
)
def test_a_malformed_header_is_refused(body: bytes, length: int | None, says: str) -> None:
    with pytest.raises(wire.WireError, match=says):
        wire.decode(body, length, key="inputs")


def test_a_tensor_given_twice_is_refused() -> None:
    entry = {"name": "t", "shape": [0], "datatype": "FP32", "data": []}
    with pytest.raises(wire.WireError, match="given twice"):
        wire.decode(json.dumps({"inputs": [entry, entry]}).encode(), None, key="inputs")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b"])},
    optional={
        "shape": st.lists(st.integers(-1, 4) | st.integers(), max_size=4) | json_values,
        "datatype": st.sampled_from([*DTYPES, "BYTES"]) | json_values,
        "data": json_values,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40) | json_values})
        | json_values,
    },
)


@settings(max_examples=400, deadline=None)
@given(
    header=st.fixed_dictionaries({"inputs": st.lists(entries, max_size=3)}),
    raw=st.binary(max_size=40),
)
def test_any_json_header_decodes_or_is_a_wire_error(header: dict[str, Any], raw: bytes) -> None:
    head = json.dumps(header).encode()
    try:
        decoded = wire.decode(head + raw, len(head), key="inputs")
    except wire.WireError:
        return
    for entry in header["inputs"]:
        assert list(decoded.tensors[entry["name"]].shape) == entry["shape"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_message_decodes_or_is_a_wire_error(data: st.DataObject) -> None:
    chunks, length = wire.encode(
        {}, {"images": PIXELS, "prompts": wire.bytes_tensor(["a", "bc"])}, key="inputs"
    )
    body = bytearray(b"".join(chunks))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)):
        body[at] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        tensors = wire.decode(body, length + data.draw(st.integers(-2, 2)), key="inputs").tensors
    except wire.WireError:
        return
    assert all(isinstance(tensor, np.ndarray) for tensor in tensors.values())


def test_outputs_default_to_all_of_them_in_json() -> None:
    wanted = wire.requested_outputs({}, ["scores", "errors"])
    assert wanted == {"scores": False, "errors": False}


def test_binary_data_of_an_output_comes_before_that_of_the_request() -> None:
    header = {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "errors", "parameters": {"binary_data": False}}, {"name": "scores"}],
    }
    wanted = wire.requested_outputs(header, ["scores", "errors"])
    assert list(wanted.items()) == [("errors", False), ("scores", True)]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"name": "x"}, "there is no output 'x', there are: scores"),
        ({"name": "scores", "parameters": {"binary_data": 1}}, "must be true or false, got 1"),
        (
            {"name": "scores", "parameters": {"classification": 3}},
            "'classification' is not supported",
        ),
    ],
)
def test_outputs_that_cannot_be_given_are_refused(output: dict[str, Any], says: str) -> None:
    with pytest.raises(wire.WireError, match=says):
        wire.requested_outputs({"outputs": [output]}, ["scores"])


def test_a_dtype_without_a_name_and_bytes_without_text_cannot_be_encoded() -> None:
    with pytest.raises(wire.WireError, match="tensor 't': the protocol has no datatype for complex64"):
        wire.encode({}, {"t": np.zeros(1, np.complex64)}, key="inputs")
    with pytest.raises(wire.WireError, match="tensor 't': not UTF-8"):
        wire.encode({}, {"t": wire.bytes_tensor([b"\xff"])}, key="inputs", binary=[])


def test_plain_is_what_comes_back_through_json() -> None:
    value = {
        "a": (1, 2.5, True, None),
        7: [math.nan, -math.inf],
        "numpy": {"f": np.float32(0.5), "i": np.int64(3), "b": np.bool_(True), "nan": np.float64("nan")},
        "array": np.array([[1.0, np.inf]]),
        "tensor": torch.tensor([1, 2]),
        "text": "é\ud800",
    }
    plain = wire.plain(value)
    assert plain == {
        "a": [1, 2.5, True, None],
        "7": [None, None],
        "numpy": {"f": 0.5, "i": 3, "b": True, "nan": None},
        "array": [[1.0, None]],
        "tensor": [1, 2],
        "text": "é?",
    }
    assert wire.decode_object(wire.encode_object(plain), "x") == plain
    with pytest.raises(ItemError, match=r"a set in its details, has no form in JSON"):
        wire.plain({"a": [{1}]})


def test_an_empty_object_is_an_empty_element() -> None:
    assert wire.encode_object({}) == ""
    assert wire.decode_object(b"", "metadata") == {}
    for raw, says in (
        (b"[]", "must be a JSON object, got list"),
        (b"\xff", "not JSON"),
        (b"[" * 9**5, "not JSON"),
    ):
        with pytest.raises(ItemError, match=f"the metadata.*{says}"):
            wire.decode_object(raw, "metadata")


def test_columns_are_read_as_lists() -> None:
    column = np.arange(3)[:, None]
    assert_array_equal(wire.per_item(column, "scores"), [0, 1, 2])
    with pytest.raises(wire.WireError, match=r"'scores' must be \[N\] or \[N,1\], got \[1, 3\]"):
        wire.per_item(column.T, "scores")


@pytest.mark.parametrize("value", ["-1", "x", "", "1" * 30, "\u0661"])
def test_a_header_length_that_is_no_number_is_refused(value: str) -> None:
    assert wire.parse_json_length("12") == 12
    with pytest.raises(wire.WireError, match="non-negative number"):
        wire.parse_json_length(value)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        ("é" * 50_000, "is 100,000 bytes of UTF-8, the limit is 32,768"),
        ("\ud800", "not valid Unicode"),
        (7, "must be a str, got int"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_an_item_error(prompt: Any, says: str) -> None:
    with pytest.raises(ItemError, match=says):
        wire.check_prompt(prompt)


def test_a_prompt_at_the_limit_passes() -> None:
    wire.check_prompt("a" * wire.MAX_PROMPT_BYTES)
    assert wire.decode_prompt("é".encode()) == "é"
    with pytest.raises(ItemError, match="not UTF-8"):
        wire.decode_prompt(b"\xff")


@pytest.mark.parametrize("binary", [None, []])
def test_a_stack_is_sent_as_the_tensor_that_it_means(binary: list[str] | None) -> None:
    whole = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    for stack in (list(whole), list(whole[:, ::2])):
        chunks, length = wire.encode({}, {"images": stack}, key="inputs", binary=binary)
        message = wire.decode(b"".join(chunks), None if binary == [] else length, key="inputs")
        np.testing.assert_array_equal(message.tensors["images"], np.stack(stack))
