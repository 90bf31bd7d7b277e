"""Between a domain and its hypervisor, where rules strike: at the same places at which a tracer listens."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from xenpy.abi.event_channel import EVTCHNSTAT
from xenpy.abi.grant_table import GNTST
from xenpy.domain.inguest import IN_GUEST
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import carry_out
from xenpy.pv.gnttab import GrantError
from xenpy.pv.xenstore import Connection
from xenpy.testing.faults.rules import TIMED, Action
from xenpy.testing.interpose import interpose
from xenpy.testing.trace import messages
from xenpy.testing.trace.calls import MULTICALL, name_of, reasoned
from xenpy.testing.trace.ports import PortNames, port_fields
from xenpy.testing.trace.record import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.inguest import InGuest
    from xenpy.host import Guest
    from xenpy.hypercalls.call import Call
    from xenpy.pv.evtchn.port import Port
    from xenpy.pv.evtchn.table import Deliver
    from xenpy.pv.gnttab.pins import Use
    from xenpy.pv.xenstore.watches import Watch
    from xenpy.pv.xenstore.wire import Message
    from xenpy.testing.faults.rules import Rule
    from xenpy.testing.trace.record import Value

    Serve = Callable[[Connection, Message], bytes]
    Hand = Callable[[Watch, str], None]
    MakeUse = Callable[..., Use]

_OF_KERNEL: Final = frozenset((Kind.HYPERCALL, Kind.EVENT))
"""What would pass us by where the kernel serves events itself."""
_OF_DEVICES: Final = frozenset((Kind.REQUEST, *TIMED))
_KEPT: Final = 10_000
"""Faults that are remembered."""
_SLICE_S: Final = 0.05
_REASON: Final = "an injected fault"
_OK: Final = b"OK\0"
_MAX_HELD: Final = 1024
"""Events that wait for a delay to be over, or for another to overtake them; more are delivered at once."""


class Fault(NamedTuple):
    """A fault that has struck: which action of which rule, for which of those that match it, and what it has struck."""

    action: str
    rule: str
    number: int
    what: str


class Injector:
    """Applies rules to one guest from `attach` to `detach`; `with` does both. Of several rules that strike at once, the first counts.

    Tracers of the domain hear of each fault when it strikes, and `faults` keeps the last. Raises ConfigError for devices that it has not.
    """

    def __init__(self, guest: Guest, rules: Sequence[Rule]) -> None:
        self._guest = guest
        self._host = guest.host
        self._domain = guest.domain
        self._rules = list(rules)
        self._kinds = {rule.kind for rule in rules}
        self.faults: deque[Fault] = deque(maxlen=_KEPT)
        self._names = PortNames(self._host.store, self._domain.domid)
        self._held: list[tuple[Deliver, Port]] = []
        self._delayed = 0
        self._undo: list[Callable[[], None]] = []
        self._forbidding: InGuest | None = None
        self._troubled: list[Any] = []
        self._over = threading.Event()
        self._before: Callable[[Call], int] = carry_out

    def attach(self) -> None:
        """Begin; the domain may run already. Raises ConfigError."""
        if self._domain.kernel_events is not None and self._kinds & _OF_KERNEL:
            self._domain.kernel_events.forbid()
            self._undo.append(self._domain.kernel_events.allow)
        if self._kinds & _OF_DEVICES:
            self._come_between_devices()
        with self._host.lock:
            if Kind.HYPERCALL in self._kinds:
                self._undo.append(interpose(self._domain, "dispatch", self._take_place))
            if Kind.EVENT in self._kinds:
                tables = self._domain.evtchn, self._host.ports
                self._undo += [table.interpose(self._delivering) for table in tables]
            if Kind.XENSTORE in self._kinds:
                self._come_between_xenstore()
            if Kind.GRANT in self._kinds:
                self._come_between_grants()
        if self._strikes_in_guest():
            self._forbidding = self._domain.in_guest
        if self._forbidding is not None:
            self._forbidding.forbid()

    def _strikes_in_guest(self) -> bool:
        """Tell whether a rule may strike what in-guest code would carry out."""
        rules = [rule for rule in self._rules if rule.kind is Kind.HYPERCALL]
        return any(rule.only.wants(Kind.HYPERCALL, name) for rule in rules for name in IN_GUEST)

    def detach(self) -> None:
        """End; events that were held back are delivered. Idempotent."""
        if self._forbidding is not None:
            self._forbidding.allow()
            self._forbidding = None
        self._over.set()
        for backend in self._troubled:
            backend.trouble(None)
        self._troubled.clear()
        with self._host.lock:
            while self._undo:
                self._undo.pop()()
            self._release_held()

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _struck(self, kind: Kind, name: str, fields: dict[str, Value]) -> Rule | None:
        """Return the rule that strikes, and tell of it. Every rule counts what it matches."""
        subject = Record(0, self._domain.domid, None, kind, name, fields)
        with self._host.lock:
            struck = [rule for rule in self._rules if rule.strikes(subject)]
            if not struck:
                return None
            rule = struck[0]
            self._tell(rule, f"{kind.value} {name}")
        return rule

    def _tell(self, rule: Rule, what: str) -> None:
        fault = Fault(rule.action.value, rule.text, rule.seen, what)
        self.faults.append(fault)
        for hear in list(self._domain.on_injected):
            hear(fault.action, {"rule": fault.rule, "number": fault.number, "what": fault.what})

    # -- devices and the clock ----------------------------------------------------------------------------------------

    def _come_between_devices(self) -> None:
        from xenpy.testing.faults import devices

        guest = self._guest
        for rule in self._rules:
            if rule.kind in _OF_DEVICES:
                devices.check(guest, rule)
        if Kind.REQUEST in self._kinds:
            for kind, devid in guest.devices.names():
                backend: Any = guest.devices.find(kind, devid)
                if hasattr(backend, "trouble") and backend.trouble(devices.make_ask(f"{kind}/{devid}", self._struck)):
                    self._troubled.append(backend)
        for rule in self._rules:
            if rule.kind in TIMED:
                self._strike_at(rule)

    def _strike_at(self, rule: Rule) -> None:
        from xenpy.testing.faults import devices

        loop = self._host.loop

        def due() -> None:
            if self._over.is_set() or self._domain.ending is not None:
                return
            rule.seen += 1
            with self._host.lock:
                self._tell(rule, " ".join([rule.kind.value, *filter(None, rule.names)]))
            devices.strike(self._guest, rule)

        loop.call_soon(lambda: _forget(loop.call_later(rule.at_s, due)))

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def _take_place(self, before: Callable[[Call], int]) -> Callable[[Call], int]:
        self._before = reasoned(before)
        return self

    def __call__(self, call: Call) -> int:
        """Take the place of `Domain.dispatch`."""
        try:
            return self.carry_out(call)
        except XenError as error:
            return -error.errno

    def carry_out(self, call: Call) -> int:
        """Carry out a hypercall, or not. Raises XenError."""
        before = self._before
        rule = self._struck(Kind.HYPERCALL, name_of(call)[0], {}) if call.nr != MULTICALL else None
        if rule is None:
            return before(call)
        if rule.action is Action.ERROR:
            raise XenError(Errno(rule.error), _REASON)
        if rule.action is Action.DROP:
            return 0
        if rule.action is Action.DELAY:
            self._sleep(call, rule.delay_s)
        else:
            with suppress(XenError):
                before(call)
        return before(call)

    def _sleep(self, call: Call, seconds: float) -> None:
        """Let a vCPU wait without the lock, and no longer than its domain lives."""
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            self._host.lock.release()
            try:
                time.sleep(min(rest, _SLICE_S))
            finally:
                self._host.lock.acquire()
            call.checkpoint()

    # -- events -------------------------------------------------------------------------------------------------------

    def _delivering(self, deliver: Deliver) -> Deliver:
        domid = self._domain.domid

        def delivering(entry: Port) -> None:
            concerns = entry.owner.domid == domid or (entry.peer is not None and entry.peer.owner.domid == domid)
            rule = None
            if concerns:
                fields = port_fields(entry, self._names)
                rule = self._struck(Kind.EVENT, EVTCHNSTAT(entry.state).name, fields)
            if rule is not None and rule.action is Action.REORDER and len(self._held) < _MAX_HELD:
                self._held.append((deliver, entry))
                return
            if rule is not None and rule.action is Action.DELAY and self._delayed < _MAX_HELD:
                self._deliver_later(deliver, entry, rule.delay_s)
                return
            if rule is None or rule.action is not Action.DROP:
                deliver(entry)
            if rule is not None and rule.action is Action.DUPLICATE:
                deliver(entry)
            if concerns:
                self._release_held()

        return delivering

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for deliver, entry in held:
            _deliver_if_bound(deliver, entry, entry.state)

    def _deliver_later(self, deliver: Deliver, entry: Port, seconds: float) -> None:
        loop, state = self._host.loop, entry.state
        self._delayed += 1

        def due() -> None:
            with self._host.lock:
                self._delayed -= 1
                if self._domain.ending is None:
                    _deliver_if_bound(deliver, entry, state)

        loop.call_soon(lambda: _forget(loop.call_later(seconds, due)))

    # -- xenstore and grants --------------------------------------------------------------------------------------------

    def _come_between_xenstore(self) -> None:
        store = self._host.store
        domid = self._domain.domid

        def serving(serve: Serve) -> Serve:
            def served(connection: Connection, message: Message) -> bytes:
                if connection.caller.domid != domid:
                    return serve(connection, message)
                rule = self._struck(Kind.XENSTORE, messages.type_name(message.type), messages.request(message))
                if rule is not None and rule.action is Action.ERROR:
                    raise XenError(Errno(rule.error), _REASON)
                if rule is not None and rule.action is Action.DROP:
                    return _OK
                if rule is not None:
                    with suppress(XenError):
                        serve(connection, message)
                return serve(connection, message)

            return served

        def handing(hand: Hand) -> Hand:
            def handed(watch: Watch, path: str) -> None:
                rule = None
                if isinstance(watch.sink, Connection) and watch.sink.caller.domid == domid:
                    rule = self._struck(Kind.XENSTORE, "WATCH_EVENT", {"path": path})
                if rule is None or rule.action is Action.DUPLICATE:
                    hand(watch, path)
                if rule is not None and rule.action is Action.DUPLICATE:
                    hand(watch, path)

            return handed

        self._undo += [interpose(store, "serve", serving), interpose(store.watches, "hand", handing)]

    def _come_between_grants(self) -> None:
        def between(make_use: MakeUse) -> MakeUse:
            def using(gref: int, domid: int, *, readonly: bool, mapping: bool) -> Use:
                rule = self._struck(Kind.GRANT, "map" if mapping else "copy", {"ref": gref, "by": domid})
                if rule is not None:
                    raise GrantError(GNTST(rule.error), _REASON)
                return make_use(gref, domid, readonly=readonly, mapping=mapping)

            return using

        self._undo.append(interpose(self._domain.gnttab, "make_use", between))


def _deliver_if_bound(deliver: Deliver, entry: Port, state: int) -> None:
    if entry.state == state:  # it may have been closed meanwhile, and an event on a closed port is none
        deliver(entry)


def _forget(_deadline: object) -> None:
    """Keep nothing of a deadline that nobody cancels."""
