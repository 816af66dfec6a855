"""Ctrl-C and SIGTERM as requests to stop where the work can be resumed."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self


class Interrupted(Exception):
    """The user asked to stop. Finished runs are saved, and others can be gone on with."""


class StopNow(Exception):
    """A signal came while :meth:`StopRequest.interrupting` was open."""


class StopRequest:
    """While open, turns the first Ctrl-C or SIGTERM into a request to stop.

    The work asks ``requested`` whenever it could stop and be resumed. The second signal raises
    KeyboardInterrupt at once. Outside of the main thread, where Python delivers no signals, nothing
    changes.

    Attributes:
        signal_number: The first signal that came, or None.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.requested
        True
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupts = False

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the first signal end the block, which may stop anywhere, with :class:`StopNow`."""
        if self.requested:
            raise StopNow
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.signal_number = number
        if self._interrupts:
            raise StopNow
