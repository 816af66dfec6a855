"""The first signal asks, a Ctrl-C after it aborts."""

import signal
import threading

import pytest

from coordrl.stopping import StopNow, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_a_ctrl_c_after_it_aborts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        requested = [stop.requested]
        signal.raise_signal(number)
        requested.append(stop.requested)
        assert requested == [False, True]
        assert stop.signal_number == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_of_a_program_may_come_again(first: signal.Signals) -> None:
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)  # as `timeout` does, to the process and to its group
        assert stop.signal_number == first


def test_a_terminal_that_closes_asks_however_often_it_says_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may be ignored here
    try:
        with StopRequest() as stop:
            for _ in range(2):  # once by the system, once by the shell
                signal.raise_signal(signal.SIGHUP)
            assert stop.signal_number == signal.SIGHUP
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_request_within_another_is_the_same_request() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner.requested
        assert outer.signal_number == signal.SIGTERM
        with StopRequest() as next_inner:
            assert next_inner.signal_number == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    with StopRequest() as another:
        assert not another.requested


def test_a_hangup_that_nohup_ignores_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


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
