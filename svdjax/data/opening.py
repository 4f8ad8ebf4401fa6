"""Opens sources by name: folders, shards, latent caches and TensorFlow Datasets, one or several mixed."""

from collections.abc import Sequence
from pathlib import Path

from svdjax.data import tfds
from svdjax.data.cache import LatentCache, is_cache
from svdjax.data.sources import ClipSource, FolderSource, Mixture, ShardSource
from svdjax.errors import UserError


def open_source(where: str | Path, *, max_bad: float = 0.1) -> ClipSource | LatentCache:
    """What is in a directory: a latent cache, shards where there is a ``dataset.json``, else video or picture
    files.

    ``tfds:NAME`` opens a data set of TensorFlow Datasets instead (see `tfds.open_tfds`).

    Args:
        max_bad: share of the clips that may be unreadable.

    Raises:
        UserError: no such directory or data set, or no clips in it.
    """
    if str(where).startswith(tfds.PREFIX):
        return tfds.open_tfds(str(where), max_bad=max_bad)
    directory = Path(where)
    if is_cache(directory):
        return LatentCache(directory)
    if (directory / "dataset.json").exists():
        return ShardSource(directory)
    return FolderSource(directory, max_bad=max_bad)


def open_mixture(
    wheres: Sequence[str | Path], weights: Sequence[float], *, max_bad: float = 0.1
) -> ClipSource | LatentCache:
    """One source, or several mixed.

    Args:
        weights: of several sources: how often clips of each are drawn; none for a single source.

    Raises:
        UserError: a source cannot be opened, or the weights do not match.
    """
    sources = [open_source(where, max_bad=max_bad) for where in wheres]
    if len(sources) == 1 and not weights:
        return sources[0]
    if caches := [where for where, source in zip(wheres, sources, strict=True) if isinstance(source, LatentCache)]:
        raise UserError(f"{caches[0]} is a latent cache and cannot be mixed: compute one cache of the mixture")
    return Mixture(sources, weights)
