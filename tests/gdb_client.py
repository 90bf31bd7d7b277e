"""A debugger for tests: GDB's remote serial protocol from the other side."""

from __future__ import annotations

import socket
from typing import Self

from xenpy.gdb.packets import Decoder, Packet, encode
from xenpy.gdb.registers import REGISTERS

TIMEOUT_S = 60.0


class Client:
    """A connection to `address`, as `Guest.gdb` returns it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._decoder = Decoder()
        self._packets: list[bytes] = []
        try:
            assert self.ask("QStartNoAckMode") == "OK", "nobody listens"
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, content: bytes | str) -> None:
        self.socket.sendall(encode(content.encode() if isinstance(content, str) else content))

    def reply(self) -> str:
        """Return the next packet; "" as well when the other side has hung up."""
        while not self._packets:
            data = self.socket.recv(1 << 16)
            if not data:
                return ""
            self._packets.extend(event.content for event in self._decoder.feed(data) if isinstance(event, Packet))
        return self._packets.pop(0).decode("latin-1")

    def ask(self, content: bytes | str) -> str:
        self.send(content)
        return self.reply()

    def registers(self) -> dict[str, int]:
        data, values = bytes.fromhex(self.ask("g")), {}
        for register in REGISTERS:
            size = register.bits // 8
            values[register.name], data = int.from_bytes(data[:size], "little"), data[size:]
        assert not data
        return values

    def monitor(self, command: str) -> str:
        answer = self.ask(f"qRcmd,{command.encode().hex()}")
        return "" if answer == "OK" else bytes.fromhex(answer).decode()
