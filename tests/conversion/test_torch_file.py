"""The reader of .ckpt files: everything that torch.save makes of weights, and nothing that runs code."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from svdjax.conversion.source import open_checkpoint
from svdjax.conversion.torch_file import read_ckpt
from svdjax.errors import UserError


def weights():
    torch.manual_seed(1)
    base = torch.randn(6, 4)
    return {
        "plain": torch.randn(2, 3, 4),
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(5, 2).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "ids": torch.arange(9)[None],
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 2),
        "transposed": base.T,
        "window": base[1:5, 1::2],
        "shared": base,
        "broadcast": torch.randn(1).expand(4),
    }


@pytest.mark.parametrize("wrap", [dict, collections.OrderedDict, lambda x: {"state_dict": x, "global_step": 3}])
def test_reads_what_torch_saved(tmp_path, wrap):
    expected = weights()
    torch.save(wrap(expected), tmp_path / "a.ckpt")
    tensors = read_ckpt(tmp_path / "a.ckpt")
    assert tensors.keys() == expected.keys()
    for key, tensor in tensors.items():
        assert tensor.shape == tuple(expected[key].shape)
        assert tensor.dtype.name == str(expected[key].dtype).removeprefix("torch.")
        array = tensor.load()
        np.testing.assert_array_equal(array.astype(np.float64), expected[key].double().numpy())


def test_reads_a_modules_state_dict(tmp_path):
    # Its state dict carries an attribute (_metadata) besides the tensors.
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "a.ckpt")
    assert read_ckpt(tmp_path / "a.ckpt").keys() == module.state_dict().keys()


class Call:
    """Pickles into a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile_file(path: Path, content: object) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize(
    "call",
    [
        lambda marker: Call(os.system, f"touch {marker}"),
        lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Call(getattr, Call(__import__, "os"), "mkdir"),
        lambda marker: {"state_dict": {"x": Call(Path.touch, marker)}},
    ],
)
def test_refuses_to_run_code(tmp_path, call):
    marker = tmp_path / "ran"
    path = hostile_file(tmp_path / "evil.ckpt", call(marker))
    with pytest.raises(UserError, match=r"refused: it asks for .*may run code"):
        read_ckpt(path)
    assert not marker.exists()


def test_refuses_other_functions_of_torch(tmp_path):
    torch.save({"x": torch.nn.Linear(2, 2)}, tmp_path / "module.ckpt")
    with pytest.raises(UserError, match=r"refused: it asks for torch.nn"):
        read_ckpt(tmp_path / "module.ckpt")


def _edited(path: Path, edit) -> Path:
    """The same archive with one member's bytes edited."""
    target = path.with_name("edited.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return target


def test_refuses_a_tensor_beyond_its_storage(tmp_path):
    torch.save({"x": torch.randn(64)}, tmp_path / "a.ckpt")

    def longer(name, data):  # BININT1 64, the tensor's size, follows a MARK-less TUPLE1: K@\x85
        return data.replace(b"K@\x85", b"K\xff\x85") if name.endswith("data.pkl") else data

    with pytest.raises(UserError, match="x reaches beyond its storage"):
        read_ckpt(_edited(tmp_path / "a.ckpt", longer))


def test_refuses_a_storage_that_is_too_short(tmp_path):
    torch.save({"x": torch.randn(64)}, tmp_path / "a.ckpt")
    short = _edited(tmp_path / "a.ckpt", lambda name, data: data[:40] if name.endswith("data/0") else data)
    with pytest.raises(UserError, match="damaged"):
        read_ckpt(short)


def test_refuses_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.txt", "cheese")
    with pytest.raises(UserError, match="not one that PyTorch wrote"):
        read_ckpt(tmp_path / "photos.zip")
    torch.save({"x": torch.randn(64)}, tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged zip"):
        read_ckpt(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {}}])
def test_refuses_a_pickle_without_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="holds no"):
        read_ckpt(tmp_path / "a.ckpt")


def test_refuses_the_old_format(tmp_path):
    buffer = io.BytesIO()
    torch.save({"x": torch.randn(3)}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "old.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="old PyTorch file"):
        open_checkpoint(tmp_path / "old.ckpt")
