"""Makes a data set of TensorFlow Datasets out of clips, without TensorFlow: ArrayRecord files for ``tfds:NAME``.

A record has two features, both bytes: ``annotations``, a JSON object as in `records`, and ``video``, a file as it
is: it takes no more room than the files do, and nothing is decoded to write it. What is known of all clips together
(`tfds.TFDSClips`) is in the data set's metadata.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from svdjax.data.opening import open_source
from svdjax.data.records import annotations_json, video_bytes
from svdjax.data.sources import ClipSource, FolderSource, ShardSource
from svdjax.data.tfds import ANNOTATIONS, METADATA, NAME, PREFIX, VIDEO
from svdjax.errors import UserError, require

tfds = require("tensorflow_datasets", "tfds")


@dataclass(eq=False, kw_only=True)
class ClipsConfig(tfds.core.BuilderConfig):
    """One data set: ``sources`` are the clips of each split, by its name."""

    sources: Mapping[str, ClipSource] = field(default_factory=dict)


class ClipsBuilder(tfds.core.GeneratorBasedBuilder):
    """The builder behind `build`; each data set is a configuration of it."""

    name = NAME
    code_path = None  # where TFDS would look for a list of downloads; finding it takes a package that it may lack
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features.FeaturesDict({ANNOTATIONS: tfds.features.Text(), VIDEO: tfds.features.Text()})
        sources = self.builder_config.sources if self.builder_config else {}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips: video files and what is known about them.",
            features=features,
            metadata=tfds.core.MetadataDict({METADATA: {split: _known(each) for split, each in sources.items()}}),
            disable_shuffling=True,  # the order of the metadata
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, bytes]]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(source) for split, source in self.builder_config.sources.items()}

    def _generate_examples(self, source: ClipSource) -> Iterator[tuple[int, dict[str, bytes]]]:
        for index in range(len(source)):
            record = source[index]
            yield index, {ANNOTATIONS: annotations_json(record), VIDEO: video_bytes(record)}


def build(name: str, splits: Mapping[str, str | Path], *, data_dir: str | Path, max_bad: float = 0.1) -> str:
    """Make a data set out of folders of videos or pictures, or of shards.

    Args:
        name: of the data set. splits: the directory of each split's clips.
        data_dir: where TensorFlow Datasets keeps its data sets; the new one appears there when it is complete.
        max_bad: share of the clips that may be unreadable; they are left out.

    Returns:
        What to give to ``--data.train``: ``tfds:svdjax_clips/NAME?data_dir=DIR``, for the split "train".

    Raises:
        UserError: no clips, a data set of that name is there already, a name that cannot be one, or no room.
    """
    for word in (name, *splits):
        if not re.fullmatch(r"\w+", word):
            raise UserError(f"{word!r}: use letters, digits and underscores for a data set and its splits")
    sources = {split: _source(Path(where), max_bad) for split, where in splits.items()}
    try:
        config = ClipsConfig(name=name, sources=sources)
        builder = ClipsBuilder(config=config, data_dir=str(data_dir), file_format="array_record")
        if Path(builder.data_dir).exists():
            raise UserError(f"{builder.data_dir} is there already: choose another name or remove it")
        builder.download_and_prepare()
    except (ValueError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"data set {name} cannot be built in {data_dir} ({reason}): mend that") from None
    return f"{PREFIX}{NAME}/{name}?data_dir={quote(str(data_dir))}"


def _source(directory: Path, max_bad: float) -> ClipSource:
    source = open_source(directory, max_bad=max_bad)
    if not isinstance(source, FolderSource | ShardSource):
        raise UserError(f"{directory}: no clips in files: give a folder of videos or pictures, or of shards")
    return source


def _known(source: ClipSource) -> dict[str, Any]:
    return {
        "motion_measure": source.motion_measure,
        "motion_thresholds": source.buckets.thresholds,
        "pictures": source.has_pictures,
        "geometry": source.geometry().tolist(),
    }
