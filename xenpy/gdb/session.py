"""One debugger's session: its packets answered from a target. Without I/O.

A session is all-stop: whatever stops, stops all threads, which are the vCPUs, numbered from 1.

Ref: GDB manual, appendix E.2 to E.4
"""

from __future__ import annotations

from binascii import hexlify, unhexlify
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.gdb.packets import ACK, MAX_PACKET, NAK, Decoder, Packet, Signal, encode
from xenpy.gdb.registers import REGISTERS, description

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Action(Enum):
    """What a thread is to do when the target goes on."""

    CONTINUE = "c"
    STEP = "s"


Actions = dict[int, Action | range]
"""What each thread is to do; a range is for one step, and for others as long as they lead to addresses within."""


class Stop(Enum):
    """Why the target stopped."""

    INTERRUPT = "02"
    TRAP = "05"
    BREAKPOINT = "05swbreak:;"
    WATCHPOINT = "05watch:{:x};"


class TargetError(Exception):
    """Something that the target cannot do; the debugger is told."""


class Gone(Exception):
    """The debugger has detached or killed the target: the session is over."""


class Target(Protocol):
    """What is debugged. All but `interrupt` are asked of a target that stands still. Methods raise TargetError."""

    def threads(self) -> Sequence[int]:
        """Return the numbers of the threads."""

    def thread_info(self, thread: int) -> str:
        """Return what there is to say of a thread in a few words."""

    def read_registers(self, thread: int) -> Sequence[bytes]:
        """Return the values of REGISTERS, little-endian."""

    def write_registers(self, thread: int, values: dict[int, bytes]) -> None:
        """Set registers by their number in REGISTERS."""

    def read_memory(self, thread: int, gva: int, size: int) -> bytes:
        """Return memory, at least one byte, as far as there is some."""

    def write_memory(self, thread: int, gva: int, data: bytes) -> None:
        """Write memory."""

    def insert(self, kind: int, thread: int, gva: int, size: int) -> bool:
        """Set a breakpoint or watchpoint of a Z packet's kind; return False for a kind that cannot be had."""

    def remove(self, kind: int, thread: int, gva: int, size: int) -> bool:
        """Take a breakpoint away; return False for a kind that cannot be had."""

    def resume(self, actions: Actions) -> None:
        """Have threads go on, those that are named; the others stand still."""

    def interrupt(self) -> None:
        """Stop the target, which will be told by `Session.stopped`."""

    def detach(self) -> None:
        """Let the target go on without a debugger."""

    def kill(self) -> None:
        """End the target."""

    def monitor(self, command: str) -> str:
        """Carry out a command of ours and return what there is to say."""


_OK: Final = b"OK"
_BAD: Final = b"E01"
_NONE: Final = b""
_MAX_READ: Final = MAX_PACKET // 2
_SUPPORTED: Final = (
    b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+;hwbreak+" % MAX_PACKET
)


class Session:
    """A session. Feed it what comes; `send` is called with what goes out. Raises Gone and packets.Oversized."""

    def __init__(self, target: Target, send: Callable[[bytes], None]) -> None:
        self._target = target
        self._send = send
        self._decoder = Decoder()
        self._acknowledges = True
        self._last = b""
        self._running = False
        self._stop = Stop.TRAP, 1, 0
        self._thread = 1
        self._continue_thread = 0
        self._handlers: dict[bytes, Callable[[bytes], bytes | None]] = {
            b"?": lambda _rest: self._stop_reply(),
            b"g": self._read_all, b"G": self._write_all, b"p": self._read_one, b"P": self._write_one,
            b"m": self._read_memory, b"M": self._write_memory, b"X": self._write_binary,
            b"Z": lambda rest: self._breakpoint(rest, self._target.insert),
            b"z": lambda rest: self._breakpoint(rest, self._target.remove),
            b"H": self._select, b"T": self._is_alive, b"c": self._continue, b"s": self._step, b"C": self._continue_signalled,
            b"S": self._step_signalled, b"D": self._detach, b"k": self._kill, b"v": self._verbose, b"q": self._query, b"Q": self._set,
        }  # fmt: skip

    def feed(self, data: bytes) -> None:
        """Take bytes from the debugger."""
        for event in self._decoder.feed(data):
            if isinstance(event, Packet):
                self._take(event)
            elif event is Signal.INTERRUPT:
                if self._running:
                    self._target.interrupt()
            elif event is Signal.NAK and self._acknowledges and self._last:
                self._send(self._last)

    def stopped(self, reason: Stop, thread: int, gva: int = 0) -> None:
        """Tell the debugger that the target, which was running, stands still; because of a watchpoint at `gva`, if it is one."""
        self._stop = reason, thread, gva
        self._thread, self._continue_thread = thread, 0
        if self._running:
            self._running = False
            self._reply(self._stop_reply())

    def ended(self, code: int) -> None:
        """Tell the debugger that the target has ended."""
        if self._running:
            self._running = False
            self._reply(b"W%02x" % (code & 0xFF))

    def _take(self, packet: Packet) -> None:
        if self._acknowledges:
            self._send(ACK if packet.intact else NAK)
        if not packet.intact:
            return
        if self._running:  # nothing may be asked now but to stop
            return
        handler = self._handlers.get(packet.content[:1])
        try:
            reply = _NONE if handler is None else handler(packet.content[1:])
        except (ValueError, IndexError, TargetError):  # ValueError: not the hexadecimal it should be
            reply = _BAD
        if reply is not None:
            self._reply(reply)

    def _reply(self, content: bytes) -> None:
        self._last = encode(content)
        self._send(self._last)

    def _stop_reply(self) -> bytes:
        reason, thread, gva = self._stop
        return f"T{reason.value[:2]}thread:{thread:x};{reason.value[2:].format(gva)}".encode()

    # -- registers ----------------------------------------------------------------------------------------------------

    def _read_all(self, _rest: bytes) -> bytes:
        return hexlify(b"".join(self._target.read_registers(self._thread)))

    def _write_all(self, rest: bytes) -> bytes:
        data, values, place = unhexlify(rest), {}, 0
        for number, register in enumerate(REGISTERS):
            size = register.bits // 8
            if place + size > len(data):
                break
            values[number] = data[place : place + size]
            place += size
        self._target.write_registers(self._thread, values)
        return _OK

    def _read_one(self, rest: bytes) -> bytes:
        return hexlify(self._target.read_registers(self._thread)[_number(rest)])

    def _write_one(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        index, data = _number(number), unhexlify(value)
        if len(data) != REGISTERS[index].bits // 8:
            return _BAD
        self._target.write_registers(self._thread, {index: data})
        return _OK

    # -- memory and breakpoints -----------------------------------------------------------------------------------------

    def _read_memory(self, rest: bytes) -> bytes:
        gva, size = map(_number, rest.split(b",", 1))
        return hexlify(self._target.read_memory(self._thread, gva, min(size, _MAX_READ))) if size else _NONE

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._write(where, unhexlify(data))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._write(where, data)

    def _write(self, where: bytes, data: bytes) -> bytes:
        gva, size = map(_number, where.split(b",", 1))
        if size != len(data):
            return _BAD
        self._target.write_memory(self._thread, gva, data)
        return _OK

    def _breakpoint(self, rest: bytes, action: Callable[[int, int, int, int], bool]) -> bytes:
        kind, gva, size = map(_number, rest.split(b";", 1)[0].split(b",", 2))
        return _OK if action(kind, self._thread, gva, size) else _NONE

    # -- threads and running --------------------------------------------------------------------------------------------

    def _thread_of(self, text: bytes) -> int:
        """Return the thread that a packet names, 0 for any, -1 for all."""
        thread = -1 if text == b"-1" else _number(text)
        if thread > 0 and thread not in self._target.threads():
            raise TargetError(f"there is no thread {thread}")
        return thread

    def _select(self, rest: bytes) -> bytes:
        thread = self._thread_of(rest[1:])
        if rest[:1] == b"g":
            self._thread = thread if thread > 0 else self._thread
        elif rest[:1] == b"c":
            self._continue_thread = thread
        else:
            return _BAD
        return _OK

    def _is_alive(self, rest: bytes) -> bytes:
        self._thread_of(rest)
        return _OK

    def _resume(self, actions: Actions) -> None:
        self._running = True
        try:
            self._target.resume(actions)
        except TargetError:
            self._running = False
            raise

    def _go(self, action: Action, address: bytes) -> None:
        thread = self._continue_thread if self._continue_thread > 0 else self._thread
        if address:
            rip = next(number for number, register in enumerate(REGISTERS) if register.name == "rip")
            self._target.write_registers(thread, {rip: _number(address).to_bytes(8, "little")})
        actions: Actions = dict.fromkeys(self._target.threads(), Action.CONTINUE)
        if self._continue_thread > 0:
            actions = {}
        actions[thread] = action
        self._resume(actions)

    def _continue(self, rest: bytes) -> None:
        self._go(Action.CONTINUE, rest)

    def _step(self, rest: bytes) -> None:
        self._go(Action.STEP, rest)

    def _continue_signalled(self, rest: bytes) -> None:
        self._go(Action.CONTINUE, rest.partition(b";")[2])  # a guest has no signals to be given

    def _step_signalled(self, rest: bytes) -> None:
        self._go(Action.STEP, rest.partition(b";")[2])

    def _verbose(self, rest: bytes) -> bytes | None:
        if rest == b"Cont?":
            return b"vCont;c;C;s;S;r"
        if rest.startswith(b"Cont;"):
            self._resume(self._actions(rest[5:]))
            return None
        if rest.startswith(b"Kill"):
            self._target.kill()
            self._reply(_OK)
            raise Gone
        return _NONE

    def _actions(self, text: bytes) -> Actions:
        """Return what each thread is to do: for each the first that names it, or all."""
        actions: Actions = {}
        for part in text.split(b";"):
            verb, _, name = part.partition(b":")
            thread = self._thread_of(name) if name else -1
            action: Action | range
            if verb[:1] == b"r":
                start, end = map(_number, verb[1:].split(b",", 1))
                action = range(start, end)
            elif verb[:1].lower() in (b"c", b"s"):
                action = Action(verb[:1].lower().decode())
            else:
                raise TargetError(f"no action {verb!r}")
            for each in self._target.threads() if thread < 0 else [thread or self._thread]:
                actions.setdefault(each, action)
        return actions

    def _detach(self, _rest: bytes) -> bytes:
        self._target.detach()
        self._reply(_OK)
        raise Gone

    def _kill(self, _rest: bytes) -> bytes:
        self._target.kill()
        raise Gone

    # -- questions ----------------------------------------------------------------------------------------------------

    def _query(self, rest: bytes) -> bytes:
        if rest.startswith(b"Supported"):
            return _SUPPORTED
        if rest == b"C":
            return b"QC%x" % self._thread
        if rest == b"fThreadInfo":
            return b"m" + b",".join(b"%x" % thread for thread in self._target.threads())
        if rest == b"sThreadInfo":
            return b"l"
        if rest.startswith(b"ThreadExtraInfo,"):
            return hexlify(self._target.thread_info(self._thread_of(rest.partition(b",")[2])).encode())
        if rest.startswith(b"Attached"):
            return b"1"
        if rest.startswith(b"Symbol:"):
            return _OK
        if rest.startswith(b"Rcmd,"):
            text = self._target.monitor(unhexlify(rest[5:]).decode("utf-8", "replace"))
            return hexlify(text.encode()[: _MAX_READ - 1]) or _OK
        if rest.startswith(b"Xfer:features:read:target.xml:"):
            return self._part(description().encode(), rest.rpartition(b":")[2])
        return _NONE

    def _part(self, text: bytes, where: bytes) -> bytes:
        offset, size = map(_number, where.split(b",", 1))
        piece = text[offset : offset + min(size, _MAX_READ)]
        return (b"m" if offset + len(piece) < len(text) else b"l") + piece

    def _set(self, rest: bytes) -> bytes | None:
        if rest != b"StartNoAckMode":
            return _NONE
        self._reply(_OK)
        self._acknowledges = False
        return None


def _number(digits: bytes) -> int:
    """Return a number in hexadecimal. Raises ValueError: signs, spaces and underscores are no part of one."""
    if not digits or digits.strip(b"0123456789abcdefABCDEF"):
        raise ValueError(digits)
    return int(digits, 16)
