"""The progress bar of everything that runs in steps."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def step_bar(console: Console, *, transient: bool = False) -> Progress:
    """What is running, a bar, steps done of all, time spent and time left.

    Args:
        console: where to draw it; a console that is no terminal shows the finished bar alone.
        transient: wipe the bar at the end.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )
