"""The API for code in this process."""

from __future__ import annotations

import threading

import pytest

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore import Client, Xenstore


@pytest.fixture
def store() -> Xenstore:
    return Xenstore()


def test_values_are_text_and_survive_as_bytes(store: Xenstore) -> None:
    store.write("/a", "grüße")
    assert store.read("/a") == "grüße"
    store.write("/a", b"\xff\0")
    assert store.read_bytes("/a") == b"\xff\0"
    store.write("/b", store.read("/a"))
    assert store.read_bytes("/b") == b"\xff\0"
    store.write("/n", 42)
    assert store.read("/n") == "42"


def test_lookups(store: Xenstore) -> None:
    store.write("/a/b", "1", ["n0", "r5"])
    assert store.ls("/a") == ["b"]
    assert store.exists("/a/b")
    assert store.get("/a/c") is None
    assert store.get("/a/c", "default") == "default"
    assert [str(perm) for perm in store.get_perms("/a/b")] == ["n0", "r5"]
    assert list(store.walk("/a")) == [("/a", ""), ("/a/b", "1")]
    with pytest.raises(XenError) as caught:
        store.read("/a/c")
    assert caught.value.errno is Errno.ENOENT
    store.rm("/not/there")
    store.rm("/a")
    assert not store.exists("/a/b")


def test_a_transaction_commits_at_its_end_and_not_upon_an_exception(store: Xenstore) -> None:
    with store.transaction() as transaction:
        transaction.write("/a", "1")
        assert not store.exists("/a")
    assert store.read("/a") == "1"

    def fail() -> None:
        with store.transaction() as transaction:
            transaction.write("/a", "2")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.read("/a") == "1"


def test_a_lost_race_raises_and_atomically_tries_again(store: Xenstore) -> None:
    store.write("/n", 0)
    transaction = store.transaction()
    transaction.write("/n", 1)
    store.write("/n", 5)
    with pytest.raises(XenError) as caught, transaction:
        pass
    assert caught.value.errno is Errno.EAGAIN
    attempts = []

    def add(client: Client) -> int:
        attempts.append(client)
        value = int(client.read("/n"))
        if len(attempts) < 3:
            store.write("/n", value)
        client.write("/n", value + 1)
        return value

    assert store.atomically(add) == 5
    assert (store.read("/n"), len(attempts)) == ("6", 3)


def test_atomically_gives_up_in_the_end(store: Xenstore) -> None:
    def body(client: Client) -> None:
        client.write("/n", 1)
        store.write("/n", 2)

    with pytest.raises(XenError) as caught:
        store.atomically(body)
    assert caught.value.errno is Errno.EAGAIN


def test_counting_threads_lose_nothing(store: Xenstore) -> None:
    store.write("/n", 0)

    def count() -> None:
        for _ in range(50):
            store.atomically(lambda client: client.write("/n", int(client.read("/n")) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("/n") == "200"


def test_watches_call_at_once_and_for_every_change(store: Xenstore) -> None:
    calls: list[tuple[str, str]] = []
    watch = store.watch("/a", lambda path, token: calls.append((path, token)), "tok")
    assert calls == [("/a", "tok")]
    store.write("/a/b", "1")
    store.write("/a/b", "1")
    store.mkdir("/ab")
    assert calls == [("/a", "tok"), ("/a/b", "tok"), ("/a/b", "tok")]
    watch.cancel()
    watch.cancel()
    store.write("/a/b", "2")
    assert len(calls) == 3


def test_a_callback_may_use_the_store_and_is_not_nested(store: Xenstore) -> None:
    running = [0]
    seen = []

    def callback(path: str, _token: str) -> None:
        running[0] += 1
        assert running[0] == 1
        seen.append(path)
        if len(seen) < 4:
            store.write(f"/a/{len(seen)}", "")
        running[0] -= 1

    store.watch("/a", callback)
    assert seen == ["/a", "/a/1", "/a/2", "/a/3"]


def test_a_callback_that_fails_is_logged_and_hurts_nobody(store: Xenstore, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def fail(path: str, _token: str) -> None:
        raise RuntimeError(path)

    store.watch("/a", fail)
    store.watch("/a", lambda path, _token: calls.append(path))
    store.write("/a", "1")
    assert calls == ["/a", "/a"]
    assert caplog.text.count("a watch on /a failed") == 2


def test_special_watches_in_process(store: Xenstore) -> None:
    calls = []
    store.watch("@releaseDomain", lambda path, _token: calls.append(path), depth=1)
    store.introduce(7)
    store.forget(7)
    assert calls == ["@releaseDomain", "@releaseDomain/7"]


def test_callbacks_run_with_the_lock_free(store: Xenstore) -> None:
    entered, proceed = threading.Event(), threading.Event()

    def callback(_path: str, _token: str) -> None:
        if not first.is_set():
            first.set()
            return
        entered.set()
        assert proceed.wait(10)

    first = threading.Event()
    store.watch("/a", callback)
    thread = threading.Thread(target=lambda: store.write("/a", "1"))
    thread.start()
    assert entered.wait(10)
    store.write("/a", "2")  # would hang if the callback's thread held the lock
    proceed.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_lock_of_the_caller_s_is_used() -> None:
    lock = threading.RLock()
    store = Xenstore(lock=lock)
    with lock:
        thread = threading.Thread(target=lambda: store.write("/a", "1"))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(60)
    assert store.read("/a") == "1"
