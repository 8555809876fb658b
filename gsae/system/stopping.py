"""Ctrl-C and SIGTERM as a flag, so that nothing is cut in half."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_flag() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that no update is cut in half; a second one stops at
    once.

    Handlers are a matter of the main thread: elsewhere the event is never set.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def note(number, frame) -> None:
        if stopped.is_set():
            restore()
            signal.raise_signal(number)
        stopped.set()
        print("\nfinishing this step and saving; once more stops at once", file=sys.stderr)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    try:
        yield stopped
    finally:
        restore()
