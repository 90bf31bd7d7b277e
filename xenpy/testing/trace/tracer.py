"""Listening to a domain: its hypercalls, xenstore messages, events and grants.

Everything is heard at attributes made for it, so that a domain without a tracer runs the code it always does.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from xenpy import log
from xenpy.abi.event_channel import EVTCHNSTAT
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import carry_out, load
from xenpy.pv.gnttab import GrantError
from xenpy.pv.xenstore import Connection
from xenpy.testing.interpose import interpose
from xenpy.testing.trace import messages
from xenpy.testing.trace.calls import MULTICALL, Described, name_of, reasoned
from xenpy.testing.trace.filters import Filter
from xenpy.testing.trace.grants import TracedUse
from xenpy.testing.trace.inguest import MULTICALL_ENTRY, InGuestRecords
from xenpy.testing.trace.ports import PortNames, port_fields
from xenpy.testing.trace.record import Defers, Kind, Record, Symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain
    from xenpy.host import Host
    from xenpy.hypercalls.call import Call
    from xenpy.pv.evtchn.port import Port
    from xenpy.pv.evtchn.table import Deliver
    from xenpy.pv.gnttab.pins import Use
    from xenpy.pv.xenstore.watches import Watch
    from xenpy.pv.xenstore.wire import Message
    from xenpy.testing.trace.record import Sink, Value

    Serve = Callable[[Connection, Message], bytes]
    Hand = Callable[[Watch, str], None]
    MakeUse = Callable[..., Use]

_MAX_LINE: Final = 1024
"""Bytes after which a console line is cut in two."""
_MAX_ERRNO: Final = 4095
"""Results from -4095 to -1 are refusals. Ref: Linux, MAX_ERRNO"""


_OF_KERNEL: Final = (Kind.HYPERCALL, Kind.EVENT)
"""What would pass us by where the kernel serves events itself."""


class Tracer:
    """Listens to one domain from `attach` to `detach`; `with` does both. There may be several, in any order.

    Records that `only` lets through go to every sink. `epoch_ns`, of time.perf_counter_ns, is when time began; by default now. `in_guest`
    tells whether to hear of hypercalls that a PV guest makes without leaving it.
    """

    def __init__(
        self,
        host: Host,
        domain: Domain,
        sinks: Sequence[Sink],
        *,
        only: Filter | None = None,
        epoch_ns: int | None = None,
        in_guest: bool = True,
    ) -> None:
        self._host = host
        self._domain = domain
        self._sinks = list(sinks)
        self._filter = only or Filter()
        self._clock = time.perf_counter_ns
        self._epoch_ns = self._clock() if epoch_ns is None else epoch_ns
        self._arguments = any(sink.arguments for sink in sinks)
        self._undo: list[Callable[[], None]] = []
        self._names = PortNames(host.store, domain.domid)
        self._line = b""
        self._before: Callable[[Call], int] = carry_out
        self._in_guest: InGuestRecords | None = None
        if in_guest and domain.in_guest is not None and self._filter.wants_kind(Kind.HYPERCALL):
            defer = self._defer if all(isinstance(sink, Defers) for sink in sinks) else None
            self._in_guest = InGuestRecords(
                domain, self._emit, self._wants, self._now, arguments=self._arguments, defer=defer
            )

    # -- life ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Begin to listen; the domain may run already."""
        if self._domain.kernel_events is not None and any(map(self._filter.wants_kind, _OF_KERNEL)):
            self._domain.kernel_events.forbid()
            self._undo.append(self._domain.kernel_events.allow)
        with self._host.lock:
            self._listen_to_hypercalls()
            if self._filter.wants_kind(Kind.XENSTORE):
                self._listen_to_xenstore()
            if self._filter.wants_kind(Kind.EVENT):
                tables = self._domain.evtchn, self._host.ports
                self._undo += [table.interpose(self._delivering) for table in tables]
            if self._filter.wants_kind(Kind.GRANT):
                self._listen_to_grants()
            if self._filter.wants_kind(Kind.FAULT):
                self._domain.on_injected.append(self.fault)
                self._undo.append(lambda: self._domain.on_injected.remove(self.fault))
        if self._in_guest is not None and self._domain.in_guest is not None:
            self._domain.in_guest.listen(self._in_guest)

    def detach(self) -> None:
        """Listen no more; the sinks stay open. Idempotent."""
        if self._undo and self._in_guest is not None and self._domain.in_guest is not None:
            self._domain.in_guest.ignore(self._in_guest)
        with self._host.lock:
            while self._undo:
                self._undo.pop()()
            if self._line:
                self.output(b"\n")

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def _listen_to_hypercalls(self) -> None:
        load()  # for their names
        self._undo.append(interpose(self._domain, "dispatch", self._take_place, outer=True))

    def _take_place(self, before: Callable[[Call], int]) -> Callable[[Call], int]:
        self._before = reasoned(before)
        return self

    def _wants(self, name: str) -> bool:
        return self._filter.wants(Kind.HYPERCALL, name)

    def __call__(self, call: Call) -> int:
        """Take the place of `Domain.dispatch`."""
        try:
            return self.carry_out(call)
        except XenError as error:
            return -error.errno

    def carry_out(self, call: Call) -> int:
        """Carry out a hypercall and tell of it. Raises XenError."""
        in_guest, within = self._in_guest, 0
        if in_guest is not None and not call.within and self._domain.in_guest is not None:
            self._domain.in_guest.collect(self._domain.vcpus[call.vcpu.vcpu_id])
            if call.nr == MULTICALL:
                within = in_guest.within(call.vcpu.vcpu_id)
        name, op = name_of(call)
        if not self._wants(name):
            return self._before(call)
        described = Described(call, name, op) if self._arguments else None
        record = Record(0, self._domain.domid, call.vcpu.vcpu_id, Kind.HYPERCALL, name, depth=int(call.within))
        started = self._clock()
        try:
            result = self._before(call)
        except XenError as error:
            record.result, record.reason = -error.errno, error.reason
            raise
        except BaseException:
            record.error = "interrupted"
            raise
        else:
            record.result = result
            return result
        finally:
            record.latency_ns = self._clock() - started
            record.time_ns = started - self._epoch_ns
            interrupted = bool(record.error)
            if not interrupted and isinstance(record.result, int):
                record.error = _error_name(record.result)
            if described is not None:
                record.args = _whole(described.args, within) if within else described.args
                if not interrupted and not record.error:
                    record.out, record.error = described.outcome()
            self._emit(record)

    # -- xenstore -----------------------------------------------------------------------------------------------------

    def _listen_to_xenstore(self) -> None:
        store = self._host.store
        domid = self._domain.domid

        def serving(serve: Serve) -> Serve:
            def traced(connection: Connection, message: Message) -> bytes:
                if connection.caller.domid != domid:
                    return serve(connection, message)
                record = self._record(Kind.XENSTORE, messages.type_name(message.type), messages.request(message))
                started = self._clock()
                try:
                    payload = serve(connection, message)
                except XenError as error:
                    record.result, record.error, record.reason = -error.errno, error.errno.name, error.reason
                    raise
                else:
                    record.result = messages.answer(message.type, payload)
                    return payload
                finally:
                    record.latency_ns = self._clock() - started
                    self._emit(record)

            return traced

        def handing(hand: Hand) -> Hand:
            def traced(watch: Watch, path: str) -> None:
                hand(watch, path)
                if isinstance(watch.sink, Connection) and watch.sink.caller.domid == domid:
                    fields: dict[str, Value] = {"path": path, "token": messages.text(watch.token)}
                    self._emit(self._record(Kind.XENSTORE, "WATCH_EVENT", fields))

            return traced

        self._undo += [
            interpose(store, "serve", serving, outer=True),
            interpose(store.watches, "hand", handing, outer=True),
        ]

    # -- events and grants --------------------------------------------------------------------------------------------

    def _delivering(self, deliver: Deliver) -> Deliver:
        """Return a delivery that tells of events to the domain, and of those from it to us, whose latency is that of the backend."""
        domid = self._domain.domid

        def traced(entry: Port) -> None:
            to_guest = entry.owner.domid == domid
            if not to_guest and (entry.peer is None or entry.peer.owner.domid != domid):
                deliver(entry)
                return
            # By now: delivering may close the port.
            fields = port_fields(entry, self._names)
            record = self._record(Kind.EVENT, EVTCHNSTAT(entry.state).name, fields)
            record.vcpu_id = entry.vcpu_id if to_guest else None
            started = self._clock()
            deliver(entry)
            record.latency_ns = self._clock() - started
            self._emit(record)

        return traced

    def _listen_to_grants(self) -> None:
        self._undo.append(interpose(self._domain.gnttab, "make_use", self._using, outer=True))

    def _using(self, make_use: MakeUse) -> MakeUse:
        def traced(gref: int, domid: int, *, readonly: bool, mapping: bool) -> Use:
            fields: dict[str, Value] = {"ref": gref, "by": domid}
            if readonly:
                fields["flags"] = Symbol("readonly")
            record = self._record(Kind.GRANT, "map" if mapping else "copy", fields)
            started = self._clock()
            try:
                use = make_use(gref, domid, readonly=readonly, mapping=mapping)
            except GrantError as error:
                record.result, record.error, record.reason = int(error.status), error.status.name, error.reason
                raise
            finally:
                record.latency_ns = self._clock() - started
                self._emit(record)
            return (
                TracedUse(use, lambda: self._emit(self._record(Kind.GRANT, "unmap", dict(fields)))) if mapping else use
            )

        return traced

    # -- what others tell ---------------------------------------------------------------------------------------------

    def output(self, data: bytes) -> None:
        """Take note of console output, a line at a time."""
        if not self._filter.wants_kind(Kind.CONSOLE):
            return
        with self._host.lock:
            *lines, rest = (self._line + data).split(b"\n")
            while len(rest) > _MAX_LINE:
                lines, rest = [*lines, rest[:_MAX_LINE]], rest[_MAX_LINE:]
            self._line = rest
            for line in lines:
                fields: dict[str, Value] = {"text": messages.text(line.rstrip(b"\r")[:_MAX_LINE])}
                self._emit(self._record(Kind.CONSOLE, "line", fields))

    def fault(self, name: str, fields: dict[str, Value]) -> None:
        """Take note of a fault that was injected."""
        with self._host.lock:
            self._emit(self._record(Kind.FAULT, name, fields))

    # -- records ------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._clock() - self._epoch_ns

    def _record(self, kind: Kind, name: str, fields: dict[str, Value]) -> Record:
        return Record(self._now(), self._domain.domid, None, kind, name, fields)

    def _defer(self, make: Callable[[], list[Record]]) -> None:
        passes = self._filter.passes
        for sink in self._sinks:
            if isinstance(sink, Defers):
                sink.defer(lambda: [record for record in make() if passes(record)])

    def _emit(self, record: Record) -> None:
        if not self._filter.passes(record):
            return
        for sink in list(self._sinks):
            try:
                sink.take(record)
            except OSError as error:
                self._sinks.remove(sink)
                with suppress(OSError):  # stderr may be what cannot be written
                    log.note(f"the trace ends here: {error.strerror or error}")


def _whole(args: dict[str, Value], within: int) -> dict[str, Value]:
    """Return a multicall's arguments as they were before in-guest code had carried out the first `within` calls."""
    call_list, nr_calls = args["call_list"], args["nr_calls"]
    if not (isinstance(call_list, int) and isinstance(nr_calls, int)):
        return args
    return {"call_list": call_list - within * MULTICALL_ENTRY, "nr_calls": nr_calls + within}


def _error_name(result: int) -> str:
    if not -_MAX_ERRNO <= result < 0:
        return ""
    return Errno(-result).name if -result in Errno.__members__.values() else f"errno {-result}"
