"""Ctrl-C, SIGTERM and a closed terminal as requests to stop at a resumable point."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

# Sent by a terminal that closes. Windows does not have it.
_HANGUP: int | None = getattr(signal, "SIGHUP", None)


class Interrupted(Exception):
    """The user asked to stop. Finished runs are saved, and others can be resumed."""


class StopNow(Exception):
    """A signal came while :meth:`StopRequest.interrupting` was open."""


class StopRequest:
    """While open, turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop.

    The work checks ``requested`` wherever it can stop and be resumed. A Ctrl-C after the first
    signal raises KeyboardInterrupt at once. Other repeated signals are ignored, since programs
    often send them twice: ``timeout`` signals a process and then its group, and a closed terminal
    and its shell both send SIGHUP. If SIGHUP is ignored, as under ``nohup``, it stays ignored.
    Outside of the main thread, where Python delivers no signals, nothing changes.

    A request that is opened within another is the same request: one of the outer is one of the
    inner, and the other way round once the inner is closed.

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
        self._outer: StopRequest | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let the first signal raise :class:`StopNow` in the block, which may stop anywhere."""
        if self.requested:
            raise StopNow
        self._interrupts = True
        try:
            yield
        finally:
            self._interrupts = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
                numbers.append(signal.Signals(_HANGUP))
            for number in numbers:
                self._previous[number] = signal.signal(number, self._on_signal)
            outer = getattr(self._previous[signal.SIGINT], "__self__", None)
            if isinstance(outer, StopRequest):
                self._outer, self.signal_number = outer, outer.signal_number
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.signal_number = self.signal_number

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal_number = number
        if self._interrupts:
            raise StopNow
