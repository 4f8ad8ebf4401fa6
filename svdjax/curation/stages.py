"""The stages that annotate a clip, as the settings ask for them."""

from functools import lru_cache
from importlib.util import find_spec

from svdjax.curation.clip import Annotate
from svdjax.curation.duplicates import hash_stills
from svdjax.curation.letterbox import letterbox
from svdjax.curation.meaning import open_meaning
from svdjax.curation.motion import motion
from svdjax.curation.settings import Settings
from svdjax.curation.text import TextArea


@lru_cache(maxsize=1)
def open_stages(settings: Settings) -> tuple[dict[str, Annotate], list[str]]:
    """The stages by name, in the order in which they run, and a line for each axis that is left out.

    They are opened once in each process: some hold weights.

    Raises:
        UserError: weights that the settings name cannot be read.
    """
    stages: dict[str, Annotate] = {"motion": motion, "letterbox": letterbox, "hash": hash_stills}
    stages["meaning"], notices = open_meaning(settings)
    if settings.text and find_spec("rapidocr"):
        stages["text"] = TextArea()
    elif settings.text:
        notices.append("text: rapidocr is not installed (pip install 'svdjax[curate]'), so text_area is left out")
    return stages, notices
