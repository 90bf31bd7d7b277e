"""The switch between guests: who gets what, and how often a frame is copied."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vif_rig import BROADCAST, MAC, VifServices, connected, ethernet

from xenpy.config.vif import VifConfig
from xenpy.devices.vif.frame import Frame
from xenpy.devices.vif.opening import open_link
from xenpy.devices.vif.switch import Switches, SwitchPort

if TYPE_CHECKING:
    from collections.abc import Sequence


class Listener:
    """A sink with so much room."""

    def __init__(self, port: SwitchPort, room: int = 1 << 20) -> None:
        self.lock = threading.RLock()
        self.port, self.room = port, room
        self.got: list[bytes] = []
        self.calls = 0
        self.last: Sequence[Frame] = ()
        port.attach(self)

    def deliver(self, frames: Sequence[Frame]) -> int:
        taken = min(self.room, len(frames))
        self.room -= taken
        self.got += [b"".join(frame.parts) for frame in frames[:taken]]
        self.calls += 1
        self.last = frames
        return taken

    def link_idle(self) -> None:
        raise AssertionError("a switch is never busy")

    def link_changed(self, *, up: bool) -> None:
        raise AssertionError(f"a switch does not go {'up' if up else 'down'}")


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def frame(source: int, dest: int | bytes, payload: bytes = b"hello") -> Frame:
    data = ethernet(payload, dest=dest if isinstance(dest, bytes) else mac(dest), source=mac(source))
    return Frame([data], len(data))


def three() -> tuple[Switches, list[Listener]]:
    switches = Switches()
    return switches, [Listener(switches.join("lan")) for _ in range(3)]


def test_unknown_and_group_addresses_reach_all_and_known_ones_their_port() -> None:
    _, (a, b, c) = three()
    a.port.send([frame(1, 2), frame(1, BROADCAST)])
    assert (len(a.got), len(b.got), len(c.got)) == (0, 2, 2)
    b.port.send([frame(2, 1), frame(2, 1), frame(2, 9)])
    assert (len(a.got), len(b.got), len(c.got)) == (3, 2, 3)
    assert b.calls == 1
    assert a.calls == 1  # a batch stays a batch


def test_an_address_that_moves_is_followed() -> None:
    _, (a, b, c) = three()
    a.port.send([frame(1, BROADCAST)])
    c.port.send([frame(1, BROADCAST)])
    b.got.clear()
    b.port.send([frame(2, 1)])
    assert (len(a.got), len(c.got)) == (1, 2)


def test_nothing_goes_back_where_it_came_from() -> None:
    _, (a, b, _) = three()
    a.port.send([frame(1, BROADCAST), frame(2, 1)])
    assert a.got == []
    assert len(b.got) == 1  # the second is for the sender's own port


def test_pieces_are_handed_over_as_they_are() -> None:
    _, (a, b, _) = three()
    page = memoryview(bytearray(1000))
    sent = Frame([mac(2) + mac(1) + b"\x08\x00", page], 1014)
    a.port.send([sent])
    assert b.last[0].parts[1] is page


def test_what_there_is_no_room_for_waits_up_to_a_bound_and_in_order() -> None:
    _, (a, b, _) = three()
    b.room = 1
    for number in range(700):
        a.port.send([frame(1, BROADCAST, number.to_bytes(2, "big"))])
    b.room = 100
    b.port.resume()
    b.room = 1000
    a.port.send([frame(1, BROADCAST, b"zz")])  # must not overtake
    b.port.resume()
    numbers = [int.from_bytes(data[14:], "big") for data in b.got]
    assert numbers[:513] == list(range(513))
    assert numbers[513:] == [int.from_bytes(b"zz", "big")]


def test_a_guest_cannot_fill_the_table_nor_take_others_out_of_it() -> None:
    _, (a, b, c) = three()
    b.port.send([frame(2, BROADCAST)])
    a.port.send([frame(1000 + number, BROADCAST) for number in range(2000)])
    assert len(a.port.addresses) <= 256
    c.got.clear()
    a.port.send([frame(1, 2)])
    assert c.got == []


def test_group_addresses_as_senders_are_not_learned() -> None:
    _, (a, b, _) = three()
    data = ethernet(b"", dest=mac(9), source=BROADCAST)
    a.port.send([Frame([data], len(data))])
    assert a.port.addresses == {}
    assert b.got == [data]


def test_a_switch_lasts_as_long_as_its_ports_and_names_are_apart() -> None:
    switches, (a, b, c) = three()
    other = Listener(switches.join("other"))
    b.port.send([frame(2, BROADCAST)])
    assert other.got == []
    for listener in (a, b):
        listener.port.close()
        listener.port.close()
    a.port.send([frame(1, BROADCAST)])
    assert [len(each.got) for each in (a, c)] == [1, 1]
    c.port.send([frame(3, 2)])  # the address went with its port
    assert "lan" in switches
    c.port.close()
    assert "lan" not in switches


def test_frames_go_from_guest_to_guest_with_their_offloads() -> None:
    shared = Switches()
    with (
        connected(link=shared.join("lan")) as one,
        connected(VifConfig(0, MAC[:-1] + "9"), link=shared.join("lan")) as two,
    ):
        two.first.post(20)
        data = ethernet(bytes(range(256)) * 40, dest=BROADCAST)
        one.first.send(data)
        (got,) = two.first.receive()
        assert got.data == data
        one.first.post(1)
        for number in range(3):
            two.first.send(ethernet(bytes([number]), dest=BROADCAST))
        received = one.first.receive()
        one.first.post(2)
        received += one.first.receive()
        assert [each.data[14] for each in received] == [0, 1, 2]


def test_a_bridge_that_the_host_has_not_is_a_switch() -> None:
    services = VifServices()
    port = open_link(services, 1, VifConfig(0, MAC, bridge="no-such-bridge"))
    assert isinstance(port, SwitchPort)
    assert "no-such-bridge" in services.switches
    port.close()
    services.close()
