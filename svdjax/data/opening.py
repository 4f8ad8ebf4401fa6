"""Opens sources by name: folders, shards, latent caches and TensorFlow Datasets, one or several mixed."""

from collections.abc import Sequence
from pathlib import Path

from svdjax.data.sources import ClipSource, FolderSource, Mixture, ShardSource


def open_source(where: str | Path, *, max_bad: float = 0.1) -> ClipSource:
    """The clips in a directory: shards where there is a ``dataset.json``, else video files.

    Args:
        max_bad: share of the clips that may be unreadable.

    Raises:
        UserError: no such directory, or no clips in it.
    """
    directory = Path(where)
    if (directory / "dataset.json").exists():
        return ShardSource(directory)
    return FolderSource(directory, max_bad=max_bad)


def open_mixture(wheres: Sequence[str | Path], weights: Sequence[float], *, max_bad: float = 0.1) -> ClipSource:
    """One source, or several mixed.

    Args:
        weights: of several sources: how often clips of each are drawn; none for a single source.

    Raises:
        UserError: a source cannot be opened, or the weights do not match.
    """
    sources = [open_source(where, max_bad=max_bad) for where in wheres]
    return sources[0] if len(sources) == 1 and not weights else Mixture(sources, weights)
