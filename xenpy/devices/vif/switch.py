"""A switch between the guests of one host, in this process: it needs no privilege and leads nowhere else.

Frames go from the sender's granted pages into the receivers': a frame is copied once for each guest that gets it, unless
it has to wait for room.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from xenpy.devices.vif.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.devices.vif.frame import Frame
    from xenpy.devices.vif.link import Sink

_MAX_WAITING: Final = 512
"""Frames that wait for one guest's room; what comes then is lost, as in any switch."""
_MAX_ADDRESSES: Final = 256
"""Addresses that one port may have: those of a guest that is itself a switch."""
_GROUP: Final = 0x01
_ADDRESS: Final = 6


class Switch:
    """Learns which address is behind which port; `on_empty` is called when the last port goes."""

    def __init__(self, name: str, on_empty: Callable[[Switch], None]) -> None:
        self.name = name
        self.ports: list[SwitchPort] = []
        self._where: dict[bytes, SwitchPort] = {}
        self._on_empty = on_empty

    def add(self) -> SwitchPort:
        """Return a new port."""
        port = SwitchPort(self)
        self.ports.append(port)
        return port

    def remove(self, port: SwitchPort) -> None:
        """Forget a port."""
        self.ports.remove(port)
        for address in port.addresses:
            del self._where[address]
        if not self.ports:
            self._on_empty(self)

    def forward(self, source: SwitchPort, frames: Sequence[Frame]) -> None:
        """Pass frames on to where they belong, in one batch for each port."""
        batches: dict[SwitchPort, list[Frame]] = {}
        for frame in frames:
            head = frame.head
            sender = bytes(head[_ADDRESS : 2 * _ADDRESS])
            if self._where.get(sender) is not source and not sender[0] & _GROUP:
                self._learn(source, sender)
            target = None if head[0] & _GROUP else self._where.get(bytes(head[:_ADDRESS]))
            for port in self.ports if target is None else (target,):
                if port is not source:
                    batches.setdefault(port, []).append(frame)
        for port, batch in batches.items():
            port.offer(batch)

    def _learn(self, port: SwitchPort, address: bytes) -> None:
        before = self._where.get(address)
        if before is not None:
            del before.addresses[address]
        elif len(port.addresses) >= _MAX_ADDRESSES:
            oldest = next(iter(port.addresses))
            del port.addresses[oldest], self._where[oldest]
        self._where[address] = port
        port.addresses[address] = None


class SwitchPort(Link):
    """An interface's end of a switch."""

    def __init__(self, switch: Switch) -> None:
        self.addresses: dict[bytes, None] = {}
        self._switch: Switch | None = switch
        self._sink: Sink | None = None
        self._waiting: deque[Frame] = deque()

    def attach(self, sink: Sink) -> None:
        """Begin to deliver frames to an interface."""
        self._sink = sink

    def send(self, frames: Sequence[Frame]) -> None:
        """Have the switch pass frames on."""
        if self._switch is not None:
            self._switch.forward(self, frames)

    def offer(self, frames: Sequence[Frame]) -> None:
        """Deliver frames, or keep copies of what there is no room for yet."""
        if self._sink is None:
            return
        taken = 0 if self._waiting else self._sink.deliver(frames)
        room = _MAX_WAITING - len(self._waiting)
        self._waiting.extend(frame.keep() for frame in frames[taken : taken + room])

    def resume(self) -> None:
        """Deliver what has been waiting."""
        if self._waiting and self._sink is not None:
            for _ in range(self._sink.deliver(tuple(self._waiting))):
                self._waiting.popleft()

    def close(self) -> None:
        """Leave the switch."""
        if self._switch is not None:
            switch, self._switch = self._switch, None
            switch.remove(self)
        self._waiting.clear()


class Switches:
    """The switches of one host, by name; each lasts while it has ports."""

    def __init__(self) -> None:
        self._switches: dict[str, Switch] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._switches

    def join(self, name: str) -> SwitchPort:
        """Return a new port of the switch of that name."""
        switch = self._switches.get(name)
        if switch is None:
            switch = self._switches[name] = Switch(name, lambda switch: self._forget(switch.name))
        return switch.add()

    def _forget(self, name: str) -> None:
        del self._switches[name]
