"""A run that is killed at random moments equals one that never was, bit for bit."""

import json
import os
from pathlib import Path

import pytest

from tests.resume.kill_loop import killed_run, run_to_the_end

# Each takes some ten seconds, to start and trace again.
KILLS = int(os.environ.get("SVDJAX_KILLS", 20))


def rows(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained_on(out: Path) -> dict[tuple[str, int], set[str]]:
    """Digests of each batch of each stage, every time it was taken."""
    digests: dict[tuple[str, int], set[str]] = {}
    for stage, number, digest in rows(out / "batches.jsonl"):
        digests.setdefault((stage, number), set()).add(digest)
    return digests


def measured(out: Path, stage: str) -> dict[int, set[str]]:
    """Everything but the times that was logged of each step, every time it was made."""
    times = {"time", "steps_per_second", "clips_per_second", "data_wait", "mfu", "memory_gib", "memory_peak_gib"}
    logged: dict[int, set[str]] = {}
    for row in rows(out / stage / "metrics.jsonl"):
        kept = {name: value for name, value in row.items() if name not in times}
        logged.setdefault(row["step"], set()).add(json.dumps(kept))
    return logged


@pytest.mark.long
def test_a_killed_run_equals_one_that_never_was(tmp_path):
    once, again = (killed_run(tmp_path, name).out for name in ("once", "again"))
    assert run_to_the_end(tmp_path, "once", kills=0) == []
    deaths = run_to_the_end(tmp_path, "again", kills=KILLS)
    assert len(deaths) == KILLS and {event for event, _, _ in deaths} == {"batch", "save"}
    assert trained_on(again) == trained_on(once)
    for stage in ("vae", "unet"):
        assert measured(again, stage) == measured(once, stage)
    for model in ("vae/model.safetensors", "unet/model.safetensors", "model.safetensors"):
        assert (again / model).read_bytes() == (once / model).read_bytes()
