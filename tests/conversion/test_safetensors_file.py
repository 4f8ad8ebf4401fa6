"""Our reader and writer of .safetensors files against the reference implementation, and damaged files."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from svdjax.conversion.safetensors_file import read_safetensors, write_safetensors
from svdjax.conversion.tensors import Tensor, all_finite, checked, contiguous
from svdjax.errors import UserError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.fixture
def examples():
    torch.manual_seed(0)
    tensors = {f"x.{str(dtype)[6:]}": (torch.randn(3, 5) * 9).to(dtype) for dtype in DTYPES}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "half.odd": torch.ones(7).half()}


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def test_reads_what_the_reference_wrote(tmp_path, examples):
    save_file(examples, tmp_path / "a.safetensors", {"who": "torch"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert metadata == {"who": "torch"}
    assert tensors.keys() == examples.keys()
    for key, tensor in tensors.items():
        array, expected = tensor.load(), examples[key]
        assert array.shape == tensor.shape == tuple(expected.shape)
        assert array.dtype == tensor.dtype and array.dtype.name == str(expected.dtype)[6:]
        np.testing.assert_array_equal(bits(array), expected.reshape(-1).view(torch.uint8).numpy())


def test_the_reference_reads_what_we_wrote(tmp_path, examples):
    save_file(examples, tmp_path / "a.safetensors")
    done = []
    write_safetensors(
        tmp_path / "b.safetensors", read_safetensors(tmp_path / "a.safetensors")[0], {"x": "y"}, done.append
    )
    again = load_file(tmp_path / "b.safetensors")
    assert again.keys() == examples.keys()
    assert all(torch.equal(again[key], examples[key]) for key in examples)
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"x": "y"}
    assert sum(done) == sum(tensor.nbytes for tensor in examples.values())


@pytest.mark.parametrize("shape", [(), (0, 3), (70, 130), (65, 3, 2, 129)])
def test_transposed_arrays_are_copied_in_blocks(shape):
    array = np.arange(np.prod(shape)).reshape(shape).T
    copy = contiguous(array)
    assert copy.flags.c_contiguous
    np.testing.assert_array_equal(copy, array)


def test_writes_arrays_that_are_not_contiguous(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    write_safetensors(tmp_path / "a.safetensors", {"x": Tensor.of("x", array)}, {})
    np.testing.assert_array_equal(load_file(tmp_path / "a.safetensors")["x"].numpy(), array)


def _file(tmp_path, content):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    return path


def _with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "length alone": b"\x10\x00\x00",
    "absurd length": (1 << 60).to_bytes(8, "little") + b"{}",
    "header cut off": _with_header({"x": ROW}, bytes(8))[:20],
    "body cut off": _with_header({"x": ROW}, bytes(7)),
    "no JSON": _with_header(b"{not json}"),
    "a list": _with_header([1]),
    "a row is no object": _with_header({"x": 3}),
    "offsets missing": _with_header({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "shape and size differ": _with_header({"x": {**ROW, "shape": [3]}}, bytes(8)),
    "negative offset": _with_header({"x": {**ROW, "data_offsets": [-8, 0]}}, bytes(8)),
    "overlap": _with_header({"x": ROW, "y": ROW}, bytes(8)),
    "a gap": _with_header({"x": ROW, "y": {**ROW, "data_offsets": [16, 24]}}, bytes(24)),
    "quantised": _with_header({"x": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path, content):
    path = _file(tmp_path, content)
    with pytest.raises(UserError, match=r"damaged.safetensors") as raised:
        read_safetensors(path)
    assert "\n" not in str(raised.value)


def test_a_file_that_shrinks_after_opening_is_refused(tmp_path):
    path = _file(tmp_path, _with_header({"x": ROW}, bytes(8)))
    tensor = read_safetensors(path)[0]["x"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated: 1 bytes"):
        tensor.load()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 77, 2**21 + 7])
def test_finds_what_is_not_finite(dtype, bad, index):
    array = np.full(2**21 + 8, ml_dtypes.finfo(dtype).max, dtype)
    array[1::2] = -array[1::2]
    assert all_finite(array)
    array[index] = bad
    assert not all_finite(array)
    assert not all_finite(array.reshape(-1, 8).T)


def test_integers_are_finite_and_not_cast():
    tensor = checked(Tensor.of("ids", np.arange(3)), np.dtype(np.float16))
    assert tensor.load().dtype == tensor.dtype == np.arange(3).dtype


def test_casts_round_to_nearest():
    array = np.linspace(-3, 3, 1001, dtype=np.float32)
    for name in ("bfloat16", "float16"):
        cast = checked(Tensor.of("x", array), np.dtype(getattr(ml_dtypes, name, name))).load()
        expected = torch.from_numpy(array).to(getattr(torch, name)).float().numpy()
        np.testing.assert_array_equal(cast.astype(np.float32), expected)


def test_messages_tell_damage_from_overflow():
    def load(value):
        return checked(Tensor.of("blocks.0", np.array([1, value], np.float32)), np.dtype(np.float16)).load()

    with pytest.raises(UserError, match=r"blocks.0: has NaN"):
        load(np.nan)
    with pytest.raises(UserError, match=r"blocks.0: .* beyond the range of float16.*--dtype"):
        load(1e6)
