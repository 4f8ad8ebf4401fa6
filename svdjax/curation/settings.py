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
    """

    shortest: float = 2.0
    longest: float = 20.0
    text: bool = True

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a length is out of range.
        """
        if not 0 < self.shortest <= self.longest:
            raise UserError(
                f"--shortest {self.shortest:g} --longest {self.longest:g}: give seconds, the first above 0 and at "
                "most the second"
            )


def claim(out: Path, settings: Settings) -> None:
    """Write the settings into a directory, or check that what is there was made with the same.

    Raises:
        UserError: it was made with others, holds something else, or cannot be written.
    """
    path, wanted = out / FILE, asdict(settings)
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
