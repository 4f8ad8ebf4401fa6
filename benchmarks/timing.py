"""The clock of the benchmarks that compare single calls."""

import time
from collections.abc import Callable


def seconds(call: Callable[[], object], wait: Callable[[], object] = lambda: None) -> float:
    """Seconds that a call takes, and ``wait`` after it: for a device that goes on when the call has returned."""
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start
