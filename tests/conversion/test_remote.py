"""Checkpoints from elsewhere: addresses through fsspec, and the Hugging Face Hub."""

from pathlib import Path

import fsspec
import huggingface_hub.errors
import pytest

from svdjax.conversion import remote
from svdjax.conversion.source import open_checkpoint
from svdjax.errors import UserError
from tests.conversion.tiny import OPTIONS, assert_same, write_original
from tests.parity.tiny import TinySizes, write_tiny_pipeline


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SVDJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_file_at_an_address(tmp_path, bucket):
    source = write_original(tmp_path / "a.safetensors", "svd", seed=1)
    bucket.pipe("/bucket/models/svd.safetensors", source.read_bytes())
    found = open_checkpoint("memory://bucket/models/svd.safetensors", OPTIONS)
    assert_same(found.params, open_checkpoint(source, OPTIONS).params)


def test_a_folder_at_an_address_is_copied_once(tmp_path, bucket, monkeypatch):
    sizes = TinySizes(unet_channels=(32, 64), vae_channels=(32, 64), patch=56)
    folder = write_tiny_pipeline(tmp_path / "svd", seed=2, sizes=sizes)
    bucket.put(str(folder), "/bucket/svd", recursive=True)
    found = open_checkpoint("memory://bucket/svd")
    assert_same(found.params, open_checkpoint(folder).params)
    opened = []

    def watched(name, *args, **kwargs):
        opened.append(name)
        return type(bucket).open(bucket, name, *args, **kwargs)

    monkeypatch.setattr(bucket, "open", watched)
    assert_same(open_checkpoint("memory://bucket/svd").params, found.params)
    assert not opened
    path = "/bucket/svd/unet/config.json"
    bucket.pipe_file(path, bucket.cat_file(path))  # of the same size, but written anew
    opened.clear()
    open_checkpoint("memory://bucket/svd")
    assert opened == [path]


@pytest.mark.parametrize("address", ["memory://bucket/nothing", "nosuchscheme://bucket/svd"])
def test_addresses_that_lead_nowhere(bucket, address):
    with pytest.raises(UserError, match=address):
        open_checkpoint(address)


def test_google_storage_without_its_package(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r"gs://bucket/svd: .*pip install 'svdjax\[gcs\]'"):
        open_checkpoint("gs://bucket/svd")


LISTED = [
    "README.md",
    "model_index.json",
    "svd.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "image_encoder/model.safetensors",
    "image_encoder/model.fp16-00001-of-00002.safetensors",
    "image_encoder/model.fp16-00002-of-00002.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/model.safetensors",
]


def test_only_what_is_needed_is_downloaded():
    texts = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "feature_extractor/preprocessor_config.json",
    ]
    plain = [
        name for name in LISTED if name.split("/")[0] in ("unet", "vae", "image_encoder") and "fp16" not in name
    ]
    assert set(remote.needed_files(LISTED, None)) == {*texts, *plain}
    half = {name for name in LISTED if "fp16" in name}
    assert set(remote.needed_files(LISTED, "fp16")) == {*texts, *half}
    only_half = [name for name in LISTED if not (name.endswith(".safetensors") and "fp16" not in name)]
    assert set(remote.needed_files(only_half, None)) == {*texts, *half}


class Hub:
    """Stands for the Hub: one repository in a local folder, and a record of what was asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked = []

    def list_repo_files(self, repo):
        return [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]

    def snapshot_download(self, repo, allow_patterns=None, local_files_only=False):
        self.asked.append((repo, allow_patterns))
        return str(self.folder)

    def hf_hub_download(self, repo, name):
        self.asked.append((repo, name))
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(remote, "HfApi", lambda: hub)
    monkeypatch.setattr(remote, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(remote, "hf_hub_download", hub.hf_hub_download)
    return hub


def test_a_repository_with_a_folder(hub):
    sizes = TinySizes(unet_channels=(32, 64), vae_channels=(32, 64), patch=56)
    write_tiny_pipeline(hub.folder, seed=3, sizes=sizes)
    assert_same(open_checkpoint("someone/svd").params, open_checkpoint(hub.folder).params)
    ((repo, files),) = hub.asked
    assert repo == "someone/svd" and "unet/diffusion_pytorch_model.safetensors" in files


def test_a_repository_of_single_files(hub):
    hub.folder.mkdir()
    source = write_original(hub.folder / "sv3d_u.safetensors", "sv3d_u", seed=4)
    assert_same(open_checkpoint("someone/sv3d", OPTIONS).params, open_checkpoint(source, OPTIONS).params)
    write_original(hub.folder / "sv3d_p.safetensors", "sv3d_p", seed=5)
    with pytest.raises(UserError, match=r"someone/sv3d: no diffusers folder: .*someone/sv3d/sv3d_[pu].safetensors"):
        open_checkpoint("someone/sv3d", OPTIONS)
    assert open_checkpoint("someone/sv3d/sv3d_p.safetensors", OPTIONS).config.scalars[-1][0] == "azimuth"


def test_without_network():
    with pytest.raises(
        UserError, match=r"stabilityai/nothing: not a local path, and the Hugging Face Hub cannot be"
    ):
        open_checkpoint("stabilityai/nothing")
    with pytest.raises(UserError, match="cannot be reached"):
        open_checkpoint("stabilityai/nothing/svd.safetensors")


def test_a_full_disk_is_not_called_a_lost_connection(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "hf_hub_download", full)
    with pytest.raises(UserError, match=r"cannot be stored in the cache .No space left"):
        open_checkpoint("someone/svd/svd.safetensors")


def _answer(kind):
    import inspect

    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    return kind("no", response=response) if "response" in inspect.signature(kind).parameters else kind("no")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", r"accept its licence .*hf auth login"),
        ("RepositoryNotFoundError", "check the name"),
        ("RemoteEntryNotFoundError", "check the name"),
        ("HfHubHTTPError", "the Hugging Face Hub refused: no"),
    ],
)
def test_answers_of_the_hub(monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise _answer(getattr(huggingface_hub.errors, error))

    monkeypatch.setattr(remote, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=message):
        open_checkpoint("someone/svd/svd.safetensors")
