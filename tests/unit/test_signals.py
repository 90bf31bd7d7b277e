"""Signals that wake whoever waits."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from xenpy.signals import Wake, handled

FOREVER_S = 60


def readable(wake: Wake, timeout_s: float) -> bool:
    return bool(select.select([wake], [], [], timeout_s)[0])


def test_a_signal_calls_the_handler_and_leaves_the_wake_readable_until_drained() -> None:
    seen: list[int] = []
    before = signal.getsignal(signal.SIGUSR1)
    with handled([signal.SIGUSR1], lambda number, _: seen.append(number)) as wake:
        assert not readable(wake, 0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert readable(wake, FOREVER_S)
        assert seen == [signal.SIGUSR1]
        wake.drained()
        assert not readable(wake, 0)
        wake.drained()
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_taken_by_another_thread_wakes_the_main_one() -> None:
    """So does one just before the wait: in neither case does the system call itself end early."""
    seen: list[int] = []
    with handled([signal.SIGUSR1], lambda number, _: seen.append(number)) as wake:
        thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
        thread.start()
        assert readable(wake, FOREVER_S)
        thread.join()
    assert seen == [signal.SIGUSR1]


def test_a_storm_of_signals_overfills_nothing() -> None:
    script = textwrap.dedent("""
        import os, signal
        from xenpy.signals import handled
        seen = []
        with handled([signal.SIGUSR1], lambda number, frame: seen.append(number)) as wake:
            for _ in range(100_000):
                os.kill(os.getpid(), signal.SIGUSR1)
            wake.drained()
        print(len(seen) > 0)
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("True\n", "")


def test_only_the_main_thread_may_ask() -> None:
    errors: list[Exception] = []

    def ask() -> None:
        with pytest.raises(ValueError, match="main thread") as info, handled([signal.SIGUSR1], lambda *_: None):
            pass
        errors.append(info.value)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert errors
