"""The stages that annotate a clip, as the settings ask for them."""

from importlib.util import find_spec

from svdjax.curation.clip import Annotate
from svdjax.curation.letterbox import letterbox
from svdjax.curation.motion import motion
from svdjax.curation.settings import Settings
from svdjax.curation.text import TextArea


def open_stages(settings: Settings) -> tuple[dict[str, Annotate], list[str]]:
    """The stages by name, in the order in which they run, and a line for each axis that is left out.

    Raises:
        UserError: weights that the settings name cannot be read.
    """
    stages: dict[str, Annotate] = {"motion": motion, "letterbox": letterbox}
    notices = []
    if settings.text and find_spec("rapidocr"):
        stages["text"] = TextArea()
    elif settings.text:
        notices.append("text: rapidocr is not installed (pip install 'svdjax[curate]'), so text_area is left out")
    return stages, notices
