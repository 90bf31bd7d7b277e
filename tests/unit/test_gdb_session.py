"""GDB's remote serial protocol without a guest: packets, what a session answers, and clients that do not know it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.gdb.packets import MAX_PACKET, Decoder, Oversized, Packet, Signal, encode, unescape
from xenpy.gdb.registers import REGISTERS, description
from xenpy.gdb.session import Action, Gone, Session, Stop, TargetError

if TYPE_CHECKING:
    from collections.abc import Sequence

RIP = [register.name for register in REGISTERS].index("rip")
SIZES = [register.bits // 8 for register in REGISTERS]
MEMORY_AT, MEMORY_SIZE = 0x1000, 0x3000


class FakeTarget:
    """Two threads and some memory; `asked` has what was asked of it beyond that."""

    def __init__(self) -> None:
        self.registers = {thread: [bytes(size) for size in SIZES] for thread in (1, 2)}
        self.memory = bytearray(MEMORY_SIZE)
        self.asked: list[object] = []

    def threads(self) -> Sequence[int]:
        return (1, 2)

    def thread_info(self, thread: int) -> str:
        return f"the thread {thread}"

    def read_registers(self, thread: int) -> Sequence[bytes]:
        return self.registers[thread]

    def write_registers(self, thread: int, values: dict[int, bytes]) -> None:
        for number, data in values.items():
            assert len(data) == SIZES[number]
            self.registers[thread][number] = data

    def read_memory(self, thread: int, gva: int, size: int) -> bytes:
        del thread
        data = bytes(self.memory[max(0, gva - MEMORY_AT) :][:size]) if gva >= MEMORY_AT else b""
        if not data:
            raise TargetError("nothing there")
        return data

    def write_memory(self, thread: int, gva: int, data: bytes) -> None:
        del thread
        if not MEMORY_AT <= gva <= MEMORY_AT + MEMORY_SIZE - len(data):
            raise TargetError("nothing there")
        self.memory[gva - MEMORY_AT : gva - MEMORY_AT + len(data)] = data

    def insert(self, kind: int, thread: int, gva: int, size: int) -> bool:
        del thread, size
        self.asked.append(("insert", kind, gva))
        return kind < 2

    def remove(self, kind: int, thread: int, gva: int, size: int) -> bool:
        del thread, size
        self.asked.append(("remove", kind, gva))
        return kind < 2

    def resume(self, actions: dict[int, Action]) -> None:
        self.asked.append(actions)

    def interrupt(self) -> None:
        self.asked.append("interrupt")

    def detach(self) -> None:
        self.asked.append("detach")

    def kill(self) -> None:
        self.asked.append("kill")

    def monitor(self, command: str) -> str:
        return f"you said {command}\n" if command else ""


class Rig:
    def __init__(self, *, acknowledges: bool = False) -> None:
        self.target = FakeTarget()
        self.sent = bytearray()
        self.session = Session(self.target, self.sent.extend)
        if not acknowledges:
            self.session.feed(encode(b"QStartNoAckMode"))
            assert self.sent == b"+" + encode(b"OK")
            self.sent.clear()

    def ask(self, content: bytes) -> bytes:
        """Return the answer to a packet."""
        self.session.feed(encode(content))
        (answer,) = [event.content for event in Decoder().feed(bytes(self.sent)) if isinstance(event, Packet)]
        self.sent.clear()
        return answer

    def command(self, content: bytes) -> object:
        """Return what a packet without an answer has the target do."""
        self.target.asked.clear()
        self.session.feed(encode(content))
        assert not self.sent
        (asked,) = self.target.asked
        return asked


@pytest.fixture
def rig() -> Rig:
    return Rig()


# -- packets -----------------------------------------------------------------------------------------------------------


@given(contents=st.lists(st.binary(max_size=80), max_size=5), cut=st.integers(1, 30))
def test_packets_arrive_as_they_were_sent(contents: list[bytes], cut: int) -> None:
    stream, decoder, events = b"+".join(map(encode, contents)), Decoder(), []
    for start in range(0, len(stream), cut):
        events += list(decoder.feed(stream[start : start + cut]))
    assert [event for event in events if event is not Signal.ACK] == [Packet(content, True) for content in contents]


def test_what_is_between_packets() -> None:
    events = list(Decoder().feed(b"+-\x03garbage$x#00$x#78"))
    assert events == [Signal.ACK, Signal.NAK, Signal.INTERRUPT, Packet(b"x", False), Packet(b"x", True)]
    assert unescape(b"}") == b""
    assert unescape(b"}}a}\x03b") == b"]a#b"


def test_a_packet_without_end() -> None:
    with pytest.raises(Oversized):
        list(Decoder().feed(b"$" + b"x" * (3 * MAX_PACKET)))


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_acknowledgements_and_sending_again() -> None:
    rig = Rig(acknowledges=True)
    rig.session.feed(b"$qC#00")
    assert rig.sent == b"-"
    rig.sent.clear()
    rig.session.feed(encode(b"qC"))
    assert rig.sent == b"+" + encode(b"QC1")
    rig.session.feed(b"-")
    assert rig.sent == b"+" + 2 * encode(b"QC1")


def test_what_is_supported(rig: Rig) -> None:
    assert b"qXfer:features:read+" in rig.ask(b"qSupported:swbreak+")
    assert rig.ask(b"vCont?") == b"vCont;c;C;s;S;r"
    assert rig.ask(b"vMustReplyEmpty") == rig.ask(b"R00") == rig.ask(b"qNonsense") == rig.ask(b"") == b""


def test_the_description_comes_in_pieces_and_fits_the_registers(rig: Rig) -> None:
    text = b""
    while True:
        piece = rig.ask(b"qXfer:features:read:target.xml:%x,200" % len(text))
        text += piece[1:]
        if piece[:1] == b"l":
            break
    assert text.decode() == description()
    described = [(each.get("name"), int(each.get("bitsize", 0))) for each in ET.fromstring(text).iter("reg")]
    assert described == [(register.name, register.bits) for register in REGISTERS]
    assert len(rig.ask(b"g")) == 2 * sum(SIZES)


def test_registers(rig: Rig) -> None:
    assert rig.ask(b"P%x=8877665544332211" % RIP) == b"OK"
    assert rig.ask(b"p%x" % RIP) == b"8877665544332211"
    assert rig.ask(b"Hg2") == b"OK"
    assert rig.ask(b"p%x" % RIP) == b"0" * 16
    everything = bytes(range(256)) * 3
    assert rig.ask(b"G" + everything[: sum(SIZES)].hex().encode()) == b"OK"
    assert rig.ask(b"g") == everything[: sum(SIZES)].hex().encode()
    for wrong in (b"p100", b"p", b"p-1", b"P1=00", b"P1", b"Gzz", b"Hg9", b"Hx1", b"Pffff=00"):
        assert rig.ask(wrong) == b"E01", wrong


def test_memory(rig: Rig) -> None:
    assert rig.ask(b"M1004,3:aabbcc") == b"OK"
    assert rig.ask(b"X1010,4:}#$") == b"E01", "one too few"
    assert rig.ask(b"X1010,4:}#$*") == b"OK"
    assert rig.ask(b"m1010,4") == b"}#$*".hex().encode()
    assert rig.ask(b"m1004,4") == b"aabbcc00"
    assert rig.ask(b"m1000,0") == b""
    assert len(rig.ask(b"m1000,ffffffff")) <= MAX_PACKET
    for wrong in (
        b"m0,4",
        b"m1000",
        b"m,",
        b"m 1000,4",
        b"m10_00,4",
        b"M1000,2:aa",
        b"M1000,1:a",
        b"M0,1:aa",
        b"m" + b"f" * 99 + b",1",
    ):
        assert rig.ask(wrong) == b"E01", wrong


def test_breakpoints(rig: Rig) -> None:
    assert rig.ask(b"Z0,1000,1") == rig.ask(b"z0,1000,1;cond") == rig.ask(b"Z1,1000,1") == b"OK"
    assert rig.ask(b"Z2,1000,8") == b""
    assert rig.target.asked == [
        ("insert", 0, 0x1000),
        ("remove", 0, 0x1000),
        ("insert", 1, 0x1000),
        ("insert", 2, 0x1000),
    ]
    assert rig.ask(b"Z0") == rig.ask(b"Z0,1") == b"E01"


def test_going_on_and_stopping(rig: Rig) -> None:
    assert rig.ask(b"?") == b"T05thread:1;"
    assert rig.command(b"vCont;s:2;c") == {2: Action.STEP, 1: Action.CONTINUE}
    rig.session.feed(encode(b"g") + encode(b"?"))
    assert not rig.sent, "nothing is answered while it runs"
    rig.session.feed(b"\x03")
    assert rig.target.asked[-1] == "interrupt"
    rig.session.stopped(Stop.INTERRUPT, 2)
    assert rig.sent == encode(b"T02thread:2;")
    rig.session.stopped(Stop.INTERRUPT, 1)
    assert rig.sent == encode(b"T02thread:2;"), "it was told already"
    rig.sent.clear()
    rig.session.feed(b"\x03")
    assert rig.target.asked[-1] == "interrupt"
    assert len(rig.target.asked) == 2, "it stands still"
    assert rig.command(b"vCont;s:2") == {2: Action.STEP}
    rig.session.stopped(Stop.BREAKPOINT, 1)
    assert rig.sent == encode(b"T05thread:1;swbreak:;")
    rig.sent.clear()
    rig.command(b"vCont;c")
    rig.session.stopped(Stop.WATCHPOINT, 2, 0xFFFF_8000_0000_1234)
    assert rig.sent == encode(b"T05thread:2;watch:ffff800000001234;")


@pytest.mark.parametrize(
    ("packet", "actions"),
    [
        (b"c", {1: Action.CONTINUE, 2: Action.CONTINUE}),
        (b"s", {1: Action.STEP, 2: Action.CONTINUE}),
        (b"C05", {1: Action.CONTINUE, 2: Action.CONTINUE}),
        (b"S05;1234", {1: Action.STEP, 2: Action.CONTINUE}),
        (b"vCont;S05:2;C05", {2: Action.STEP, 1: Action.CONTINUE}),
        (b"vCont;c:-1", {1: Action.CONTINUE, 2: Action.CONTINUE}),
        (b"vCont;s:0", {1: Action.STEP}),
        (b"vCont;r1000,1010:2;c", {2: range(0x1000, 0x1010), 1: Action.CONTINUE}),
    ],
)
def test_ways_to_go_on(rig: Rig, packet: bytes, actions: dict[int, Action]) -> None:
    assert rig.command(packet) == actions


def test_one_thread_alone_and_from_elsewhere(rig: Rig) -> None:
    assert rig.ask(b"Hc2") == b"OK"
    assert rig.command(b"s4321") == {2: Action.STEP}
    assert rig.target.registers[2][RIP] == (0x4321).to_bytes(8, "little")


def test_threads(rig: Rig) -> None:
    assert (rig.ask(b"qfThreadInfo"), rig.ask(b"qsThreadInfo")) == (b"m1,2", b"l")
    assert bytes.fromhex(rig.ask(b"qThreadExtraInfo,2").decode()) == b"the thread 2"
    assert (rig.ask(b"T2"), rig.ask(b"T3"), rig.ask(b"T")) == (b"OK", b"E01", b"E01")
    assert rig.ask(b"vCont;s:7") == rig.ask(b"vCont;x") == rig.ask(b"vCont;r12:1") == rig.ask(b"vCont;r1,x:1") == b"E01"
    assert rig.ask(b"qAttached") == b"1"


def test_monitor(rig: Rig) -> None:
    assert bytes.fromhex(rig.ask(b"qRcmd," + b"info".hex().encode()).decode()) == b"you said info\n"
    assert rig.ask(b"qRcmd,") == b"OK"
    assert rig.ask(b"qRcmd,zz") == b"E01"


@pytest.mark.parametrize(
    ("packet", "asked", "answer"), [(b"D", "detach", b"OK"), (b"k", "kill", None), (b"vKill;1", "kill", b"OK")]
)
def test_endings(rig: Rig, packet: bytes, asked: str, answer: bytes | None) -> None:
    with pytest.raises(Gone):
        rig.session.feed(encode(packet))
    assert rig.target.asked == [asked]
    assert rig.sent == (b"" if answer is None else encode(answer))


def test_the_end_of_the_target(rig: Rig) -> None:
    rig.session.ended(0)
    assert not rig.sent, "nobody waits for it"
    rig.command(b"c")
    rig.session.ended(0)
    assert rig.sent == encode(b"W00")


_WORDS = st.sampled_from([b"m", b"M", b"X", b"Z0", b"z1", b"vCont", b";s:1", b";c", b"qRcmd,", b"qXfer:features:read:target.xml:",
                          b"0,10", b"1000", b",4", b":", b"=", b"G", b"g", b"p", b"P10", b"H", b"-1", b"T", b"S05"])  # fmt: skip


@given(
    packets=st.lists(st.one_of(st.binary(max_size=40), st.lists(_WORDS, max_size=5).map(b"".join)), max_size=12),
    raw=st.binary(max_size=60),
    stops=st.booleans(),
)
def test_whatever_comes_costs_nobody_but_the_debugger(packets: list[bytes], raw: bytes, stops: bool) -> None:
    rig = Rig()
    try:
        rig.session.feed(raw)
        for packet in packets:
            rig.session.feed(encode(packet))
            if stops:
                rig.session.stopped(Stop.TRAP, 1)
    except (Gone, Oversized):
        return
    assert all(event.intact for event in Decoder().feed(bytes(rig.sent)) if isinstance(event, Packet))
