"""Reading ahead, and ends that were asked for."""

import os
import signal
import threading
import time

import pytest

from jaxcl.signals import interruptible
from jaxcl.training.batches import prefetch


def test_results_come_in_order_and_are_read_ahead_but_not_far():
    """Oracle: map; and the number of reads while the consumer waits."""
    read = []

    def square(item):
        read.append(item)
        return item**2

    results = prefetch(square, range(20), ahead=2)
    assert next(results) == 0
    time.sleep(0.3)
    assert 2 <= len(read) <= 5
    assert list(results) == [item**2 for item in range(1, 20)]


def test_an_error_comes_at_its_place():
    """Oracle: the results before it."""
    got = []
    with pytest.raises(ZeroDivisionError):
        got.extend(prefetch(lambda item: 6 // item, [3, 2, 0, 1]))
    results = prefetch(lambda item: 6 // item, [3, 2, 0, 1])
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_iterator_that_runs_dry_inside_read_is_an_error_and_no_end():
    """Oracle: three results were asked for; two come, then an error."""
    source = iter([1, 2])
    results = prefetch(lambda _: next(source), range(3))
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(results)


def test_a_consumer_that_leaves_ends_the_reader():
    """Oracle: the threads of this process."""
    results = prefetch(lambda item: item, range(10**9))
    assert next(results) == 0
    results.close()
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("feed") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_thread_is_left_when_the_last_batch_was_taken_or_none_is_wanted():
    """Oracle: the threads there are, while a read is still going on."""
    slow = lambda item: time.sleep(0.3) or item
    before = threading.active_count()
    batches = prefetch(slow, range(9))
    assert next(batches) == 0
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert list(prefetch(slow, range(1))) == [0]
    assert threading.active_count() == before


def test_signals_become_a_question_and_then_what_they_were():
    """Oracle: the handlers before."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with interruptible() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_whoever_handled_sigterm_hears_of_it_when_all_is_done():
    """Oracle: the order of events. Negative control: no signal, nothing heard."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with interruptible() as interrupted:
            assert not interrupted()
        assert not heard
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupted()
            assert not heard
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
