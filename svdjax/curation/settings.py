"""What decides how videos become clips and annotations; the same in every run into one directory."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from svdjax.conversion.output import finished
from svdjax.errors import UserError

FILE = "curation.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How videos are cut and which axes are measured.

    Attributes:
        shortest: seconds of the shortest clip; the default is SVD's 14 frames at 7 a second.
        longest: seconds; longer scenes are cut into parts.
        text: measure how much of the picture is text, the slowest axis of those that need no weights.
        clip_image: a checkpoint with an image tower, such as SVD's, for embeddings.
        clip_text: a checkpoint with the text tower that belongs to it, such as the single file of SD 2.1, to score
            captions.
        aesthetic: .safetensors file of an aesthetics head that was trained on this image tower.
        image_captioner: a captioner of transformers, as a folder or a name on the Hugging Face Hub.
        endpoint: address of a server with OpenAI's chat protocol, such as http://localhost:8000/v1, for captions;
            SVDJAX_ENDPOINT_KEY in the environment is sent as its key.
        endpoint_model: name of the model there.
    """

    shortest: float = 2.0
    longest: float = 20.0
    text: bool = True
    clip_image: str | None = None
    clip_text: str | None = None
    aesthetic: str | None = None
    image_captioner: str | None = None
    endpoint: str | None = None
    endpoint_model: str = ""

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a length is out of range, or an option would do nothing without another.
        """
        if not 0 < self.shortest <= self.longest:
            raise UserError(
                f"--shortest {self.shortest:g} --longest {self.longest:g}: give seconds, the first above 0 and at "
                "most the second"
            )
        for option in ("aesthetic", "clip_text"):
            if getattr(self, option) and not self.clip_image:
                name = option.replace("_", "-")
                raise UserError(
                    f"--{name} needs embeddings of pictures: name the image tower, too, with --clip-image"
                )
        if self.endpoint_model and not self.endpoint:
            raise UserError("--endpoint-model is of a server: give its address, too, with --endpoint")


def claim(out: Path, settings: Settings) -> None:
    """Write the settings into a directory, or check that what is there was made with the same.

    Raises:
        UserError: it was made with others, holds something else, or cannot be written.
    """
    path = out / FILE
    wanted = asdict(settings) | {"endpoint": settings.endpoint is not None}  # where the server is may change
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {out}: is not empty, or no directory: choose another one") from None
        with finished(path, overwrite=True) as partial:
            partial.write_text(json.dumps(wanted, indent=1))
        return
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): choose another --out") from None
    changed = [f"{name} {found.get(name)} -> {value}" for name, value in wanted.items() if found.get(name) != value]
    if changed:
        raise UserError(
            f"{out} was curated with other settings ({', '.join(changed)}): go on with its own, or choose another "
            "--out"
        )
