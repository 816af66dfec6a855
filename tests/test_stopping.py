"""The first signal asks, the second aborts."""

import signal
import threading

import pytest

from coordrl.stopping import StopNow, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_aborts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        requested = [stop.requested]
        signal.raise_signal(number)
        requested.append(stop.requested)
        assert requested == [False, True]
        assert stop.signal_number == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_block_that_may_stop_anywhere_ends_at_the_first_signal() -> None:
    reached = []

    def work(stop: StopRequest) -> None:
        with stop.interrupting():
            reached.append("before")
            signal.raise_signal(signal.SIGINT)
            reached.append("after")

    with StopRequest() as stop:
        for _ in range(2):  # the second block does not even begin
            with pytest.raises(StopNow):
                work(stop)
        assert stop.requested
    assert reached == ["before"]


def test_a_block_that_has_ended_is_not_interrupted_any_more() -> None:
    with StopRequest() as stop:
        with stop.interrupting():
            pass
        signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_a_stop_request_in_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
