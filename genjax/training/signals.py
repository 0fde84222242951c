"""SIGTERM and SIGINT as a polite request to stop."""

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["StopRequest", "stop_on_signals"]


class StopRequest:
    """Whether a signal has asked to stop, and which."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, the first SIGTERM or SIGINT only sets the request; the second does what it always did."""
    request = StopRequest()
    previous = {}

    def note(number, _frame):
        request.name = signal.Signals(number).name
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        previous[number] = signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
