"""One client of the store: bytes in, bytes out, its transactions and watches; knows no transport."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore.paths import absolute, domain_path, watchable
from xenpy.pv.xenstore.quota import exceeded
from xenpy.pv.xenstore.transactions import LiveTree, Transaction
from xenpy.pv.xenstore.watches import Watch
from xenpy.pv.xenstore.wire import Message, MessageReader, ProtocolError, encode, encode_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenpy.pv.xenstore.quota import Quotas
    from xenpy.pv.xenstore.server import Xenstore
    from xenpy.pv.xenstore.tree import Caller

TX_ID_MAX = 0xFFFFFFFF


class Connection:
    """A guest's ring or a socket, seen from the store.

    `on_output` is called, with no lock held, whenever a change made elsewhere left something in `take_output`.
    Made by `Xenstore.connect`.
    """

    def __init__(self, store: Xenstore, caller: Caller, on_output: Callable[[], None] | None) -> None:
        self.store = store
        self.caller = caller
        self.on_output = on_output
        self.home = domain_path(caller.domid)
        self.closed = False
        self.transactions: dict[int, Transaction] = {}
        self.watches: dict[tuple[str, bytes], Watch] = {}
        self._reader = MessageReader()
        self.next_tx_id = 1
        self._output: deque[tuple[bytes, bool]] = deque()
        self.head_sent = 0
        self._queued_events: set[bytes] = set()
        self.outstanding = 0
        """Replies that the client has not fetched entirely."""
        self.output_size = 0
        """Bytes that the client has not fetched."""

    # Bytes

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client and answer what is complete, or raise ProtocolError for an oversized payload."""
        with self.store.guard:
            self._reader.feed(data)
            self.process()

    def process(self) -> None:
        """Answer buffered requests, as many as the quota on unfetched replies lets; the rest follows take_output."""
        while not self.stalled and not self.closed:
            message = self._reader.next()
            if message is None:
                return
            self.store.handle(self, message)

    @property
    def stalled(self) -> bool:
        """Whether requests wait because the client does not fetch its replies."""
        if self.caller.privileged or not self.outstanding:
            return False
        return 0 < self.quotas.outstanding <= self.outstanding

    @property
    def quotas(self) -> Quotas:
        """The client's quotas."""
        return self.store.quotas_of(self.caller.domid)

    @property
    def buffered(self) -> int:
        """Bytes received and not yet worked on."""
        return self._reader.buffered

    def take_output(self, limit: int | None = None) -> bytes:
        """Return and forget up to `limit` bytes for the client."""
        with self.store.guard:
            taken = bytearray()
            while self._output and (limit is None or len(taken) < limit):
                data, is_event = self._output[0]
                end = len(data) if limit is None else min(len(data), self.head_sent + limit - len(taken))
                taken += data[self.head_sent : end]
                if end < len(data):
                    self.head_sent = end
                    break
                self.head_sent = 0
                self._output.popleft()
                if is_event:
                    self._queued_events.discard(data)
                else:
                    self.outstanding -= 1
            self.output_size -= len(taken)
            if not self.caller.privileged:
                self.store.accounts.charge(self.caller.domid, 0, -len(taken))
            if not self._output:
                self.store.guard.settle(self)
            return bytes(taken)

    def unread_input(self) -> bytes:
        """Return what the client has sent and nobody has worked on."""
        return self._reader.rest

    def unfetched(self) -> list[tuple[bytes, bool]]:
        """Return the messages that the client has not fetched entirely, each with whether it is an event."""
        return list(self._output)

    def load_bytes(self, unread: bytes, unfetched: Iterable[tuple[bytes, bool]], head_sent: int) -> None:
        """Have the input and output of another connection, which its client goes on with here."""
        self._reader.feed(unread)
        for data, is_event in unfetched:
            if is_event:
                self._queued_events.add(data)
            else:
                self.outstanding += 1
            self._queue(data, is_event=is_event)
        self.head_sent = head_sent
        self.output_size -= head_sent
        if head_sent and not self.caller.privileged:
            self.store.accounts.charge(self.caller.domid, 0, -head_sent)

    def reply(self, kind: int, request: Message, payload: bytes) -> None:
        """Queue a reply."""
        self._queue(encode(kind, request.req_id, request.tx_id, payload), is_event=False)
        self.outstanding += 1

    def event(self, watch: Watch, path: str) -> None:
        """Queue a watch event, unless the same waits unread: the client will look after it anyway."""
        data = encode_event(path.encode("latin-1"), watch.token)
        if data not in self._queued_events and not self.store.memory_exhausted(self.caller):
            self._queued_events.add(data)
            self._queue(data, is_event=True)

    def _queue(self, data: bytes, *, is_event: bool) -> None:
        if self.closed:
            return
        self._output.append((data, is_event))
        self.output_size += len(data)
        if not self.caller.privileged:
            self.store.accounts.charge(self.caller.domid, 0, len(data))
        self.store.guard.touch(self)

    # Paths

    def path(self, raw: bytes) -> str:
        """Return the absolute path that the client means."""
        return absolute(raw, self.home, self.quotas.path_max)

    # Transactions

    def view(self, tx_id: int) -> LiveTree | Transaction:
        """Return the tree as a request of this tx_id sees it, or raise ENOENT."""
        if not tx_id:
            return self.store.tree
        transaction = self.transactions.get(tx_id)
        if transaction is None:
            raise XenError(Errno.ENOENT, f"no transaction {tx_id}")
        return transaction

    def start_transaction(self) -> int:
        """Open a transaction and return its id."""
        quotas = self.quotas
        max_nodes = 0
        if not self.caller.privileged:
            # Of transactions and watches one more than the quota is granted, as xenstored does.
            exceeded(Errno.ENOSPC, quotas.transactions, len(self.transactions) - 1, "transactions")
            max_nodes = quotas.transaction_nodes
        while self.next_tx_id in self.transactions or not self.next_tx_id:
            self.next_tx_id = self.next_tx_id + 1 & TX_ID_MAX
        tx_id = self.next_tx_id
        self.next_tx_id = tx_id + 1 & TX_ID_MAX
        self.transactions[tx_id] = Transaction(self.store.tree, max_nodes)
        return tx_id

    # Watches

    def watch(self, raw_path: bytes, token: bytes, depth: int | None) -> None:
        """Add a watch."""
        path = watchable(raw_path, self.home, self.quotas.path_max)
        if (path, token) in self.watches:
            raise XenError(Errno.EEXIST, path)
        usage = self.store.accounts.of(self.caller.domid)
        if not self.caller.privileged:
            exceeded(Errno.E2BIG, self.quotas.watches, usage.watches - 1, "watches")
        strip = 0 if raw_path.startswith((b"/", b"@")) else len(self.home) + 1
        watch = Watch(self, path, token, strip=strip, depth=depth)
        self.watches[path, token] = watch
        usage.watches += 1
        usage.memory += len(path) + len(token)
        self.store.watches.add(watch)

    def unwatch(self, raw_path: bytes, token: bytes) -> None:
        """Remove a watch, or raise ENOENT, for a malformed path too."""
        path = raw_path.decode("latin-1")
        if not path.startswith(("/", "@")):
            path = f"{self.home}/{path}"
        watch = self.watches.pop((path, token), None)
        if watch is None:
            raise XenError(Errno.ENOENT, path)
        self._forget(watch)

    def reset(self) -> None:
        """Drop all watches and transactions."""
        for watch in self.watches.values():
            self._forget(watch)
        self.watches.clear()
        self.transactions.clear()

    def _forget(self, watch: Watch) -> None:
        self.store.watches.remove(watch)
        usage = self.store.accounts.of(self.caller.domid)
        usage.watches -= 1
        usage.memory -= len(watch.path) + len(watch.token)

    # End

    def restart(self) -> None:
        """Return to the state of a new connection: no watches, transactions, partial request or unfetched output."""
        with self.store.guard:
            self.reset()
            self._reader = MessageReader()
            self.drop_output()

    def drop_output(self) -> None:
        """Forget everything that the client did not fetch."""
        if not self.caller.privileged:
            self.store.accounts.charge(self.caller.domid, 0, -self.output_size)
        self._output.clear()
        self._queued_events.clear()
        self.head_sent = self.outstanding = self.output_size = 0
        self.store.guard.settle(self)

    def close(self) -> None:
        """Leave the store; idempotent."""
        with self.store.guard:
            if not self.closed:
                self.restart()
                self.closed = True
                self.store.connections.discard(self)


__all__ = ["Connection", "ProtocolError"]
