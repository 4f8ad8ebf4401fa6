"""Checkpoints that are elsewhere: a Hugging Face repository, or an address such as ``gs://bucket/svd``.

Both are copied into a local cache first, and only the files that are needed.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever HTTP library this version uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from svdjax.conversion.diffusers import COMPONENTS, TEXT_FOLDERS
from svdjax.errors import UserError, require

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/.+\.(safetensors|ckpt))?")
_SINGLE_FILES = (".safetensors", ".ckpt")


def is_address(source: str) -> bool:
    """Whether the source is an address such as ``gs://bucket/svd``."""
    return "://" in source


def is_repo(source: str) -> bool:
    """Whether the source can be a Hugging Face repository, or ``owner/name/file`` in one."""
    first, *rest = source.split("/")
    local = source.endswith(_SINGLE_FILES) and (len(rest) == 1 or Path(first).is_dir())  # a file in a local folder
    return _REPO.fullmatch(source) is not None and not local


def fetch_repo(source: str, variant: str | None) -> Path:
    """Download what is needed of a repository, or find it in the cache.

    Args:
        source: ``owner/name`` or ``owner/name/path/file.safetensors``.
        variant: files of a diffusers folder to take, e.g. ``fp16``.

    Returns:
        A folder or a file in huggingface_hub's cache.

    Raises:
        UserError: no network, no such repository or file, or no right to read it.
    """
    owner, name, *rest = source.split("/", 2)
    repo = f"{owner}/{name}"
    try:
        if rest:
            return Path(hf_hub_download(repo, rest[0]))
        return _fetch_whole(repo, variant)
    except GatedRepoError:
        raise UserError(
            f"{repo}: gated: accept its licence on huggingface.co/{repo}, then run `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(_offline(source)) from None
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError):
        raise UserError(f"{source}: neither a local path nor on the Hugging Face Hub: check the name") from None
    except HfHubHTTPError as error:  # the Hub answered
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: the Hugging Face Hub refused: {reason}") from None
    except (HTTPError, ConnectionError):
        raise UserError(_offline(source)) from None
    except OSError as error:
        raise UserError(f"{source}: cannot be stored in the cache ({error.strerror or error})") from None


def _offline(source: str) -> str:
    return (
        f"{source}: not a local path, and the Hugging Face Hub cannot be reached (no network, or HF_HUB_OFFLINE is "
        "set): check the path or the connection, or download it elsewhere and give the folder"
    )


def _fetch_whole(repo: str, variant: str | None) -> Path:
    try:
        listed = HfApi().list_repo_files(repo)
    except HfHubHTTPError:  # the Hub answered
        raise
    except (HTTPError, ConnectionError):
        return Path(snapshot_download(repo, local_files_only=True))
    if "unet/config.json" in listed:
        return Path(snapshot_download(repo, allow_patterns=needed_files(listed, variant)))
    singles = [name for name in listed if name.endswith(_SINGLE_FILES)]
    if len(singles) == 1:
        return Path(hf_hub_download(repo, singles[0]))
    choices = ", ".join(f"{repo}/{name}" for name in singles[:6]) or "it has none"
    raise UserError(f"{repo}: no diffusers folder: name one of its files instead ({choices})")


def needed_files(listed: Iterable[str], variant: str | None) -> list[str]:
    """The files of a diffusers repository that a conversion reads: texts, and one variant of the weights.

    Args:
        listed: all files of the repository.
        variant: what the caller asked for; if left out, the plain files, or whatever every component has.
    """
    listed = list(listed)
    texts = [name for name in listed if name == "model_index.json" or name.endswith((".json", ".txt"))]
    texts = [name for name in texts if name.split("/")[0] in ("model_index.json", *COMPONENTS, *TEXT_FOLDERS)]
    weights = [name for name in listed if name.split("/")[0] in COMPONENTS and name.endswith(".safetensors")]

    def of(wanted: str) -> list[str]:
        pattern = re.compile(rf"\w+/\w+{re.escape(f'.{wanted}') if wanted else ''}(-\d+-of-\d+)?\.safetensors")
        return [name for name in weights if pattern.fullmatch(name)]

    if variant is not None:
        return texts + of(variant)
    return texts + (of("") or weights)


def fetch_address(source: str) -> Path:
    """Copy a file or a folder of any fsspec filesystem into the cache, except what is there and has not changed.

    Returns:
        The local path.

    Raises:
        UserError: the extra is not installed, the address does not exist, or it cannot be read.
    """
    fsspec = require("fsspec", "gcs")
    try:
        system, root = fsspec.core.url_to_fs(source)
        names = system.find(root)
        if not names:
            raise UserError(f"{source}: does not exist, or is an empty folder: check the address")
        local = _cache() / hashlib.sha256(source.encode()).hexdigest()[:16] / root.rstrip("/").rsplit("/")[-1]
        _copy(system, {name: local / name[len(root) :].strip("/") if name != root else local for name in names})
    except ImportError as error:
        raise UserError(f"{source}: {error}: run `pip install 'svdjax[gcs]'`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read ({error}): check the address and your rights") from None
    return local


def _cache() -> Path:
    return Path(os.environ.get("SVDJAX_CACHE", Path.home() / ".cache" / "svdjax"))


def _copy(system: Any, targets: dict[str, Path]) -> None:
    sizes = {name: system.size(name) for name in targets}
    versions = {name: f"{system.ukey(name)} {sizes[name]}" for name in targets}
    todo = {name: path for name, path in targets.items() if _cached_version(path) != versions[name]}
    columns = TextColumn("fetching"), BarColumn(), DownloadColumn()
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=sum(sizes[name] for name in todo))
        for name, path in todo.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            with system.open(name, "rb") as source, open(partial, "wb") as target:
                shutil.copyfileobj(source, target, 16 * 2**20)
            _version_file(path).unlink(missing_ok=True)
            partial.replace(path)
            _version_file(path).write_text(versions[name])
            bar.advance(task, sizes[name])


def _cached_version(path: Path) -> str | None:
    note = _version_file(path)
    return note.read_text() if path.is_file() and note.is_file() else None


def _version_file(path: Path) -> Path:
    """Where the filesystem's mark of the copied version is kept: it changes with the content, as a size may not.

    (Only fsspec's HTTP has no mark that changes, so there the size decides.)
    """
    return path.with_name(f".{path.name}.version")
