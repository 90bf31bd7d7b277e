"""A client of 9P2000.L, and a guest's driver that carries its messages over rings."""

from __future__ import annotations

from struct import pack, unpack_from
from typing import TYPE_CHECKING

from xenbus_rig import FakeDriver, FakeServices

from xenpy.abi.p9 import GETATTR_REPLY, HEADER, NO_UID, QID, RLERROR, SETATTR_REQUEST, T
from xenpy.abi.xen_9pfs import IN_CONS, IN_PROD, INDEX_MASK, OUT_CONS, OUT_PROD, RING_ORDER, RING_REFS
from xenpy.abi.xenbus import XenbusState
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.devices.p9.backend import P9Backend

ROOT = 0


def string(value: bytes) -> bytes:
    return pack("<H", len(value)) + value


class Client:
    """Calls a server: each method is a request, raises OSError with the errno of the answer, and returns what it says."""

    def __init__(self, call: Callable[[bytes], bytes], *, msize: int = 1 << 20) -> None:
        self._call = call
        self._tag = 0
        self.msize = unpack_from("<I", self.rpc(T.VERSION, pack("<I", msize) + string(b"9P2000.L")))[0]
        self.rpc(T.ATTACH, pack("<II", ROOT, NO_UID) + string(b"") + string(b"/") + pack("<I", NO_UID))

    def rpc(self, kind: int, body: bytes) -> bytes:
        self._tag = (self._tag + 1) & 0xFFFF
        reply = self._call(HEADER.pack(HEADER.size + len(body), kind, self._tag) + body)
        size, answer, tag = HEADER.unpack_from(reply)
        assert (size, tag) == (len(reply), self._tag)
        if answer == RLERROR:
            raise OSError(unpack_from("<I", reply, HEADER.size)[0], f"request {kind}")
        assert answer == kind + 1
        return reply[HEADER.size :]

    def walk(self, fid: int, new: int, *names: bytes) -> list[tuple[int, int, int]]:
        """Return the qids of what was walked through."""
        reply = self.rpc(T.WALK, pack("<IIH", fid, new, len(names)) + b"".join(map(string, names)))
        return [QID.unpack_from(reply, 2 + index * QID.size) for index in range(unpack_from("<H", reply)[0])]

    def reach(self, new: int, *names: bytes) -> None:
        """Have a fid stand for a path below the root."""
        if len(self.walk(ROOT, new, *names)) != len(names):
            raise FileNotFoundError(names)

    def open(self, fid: int, flags: int = 0) -> None:
        self.rpc(T.LOPEN, pack("<II", fid, flags))

    def create(self, fid: int, name: bytes, flags: int = 2, mode: int = 0o644) -> None:
        self.rpc(T.LCREATE, pack("<I", fid) + string(name) + pack("<III", flags, mode, NO_UID))

    def read(self, fid: int, offset: int, count: int) -> bytes:
        reply = self.rpc(T.READ, pack("<IQI", fid, offset, count))
        assert unpack_from("<I", reply)[0] == len(reply) - 4
        return reply[4:]

    def write(self, fid: int, offset: int, data: bytes) -> int:
        return int(unpack_from("<I", self.rpc(T.WRITE, pack("<IQI", fid, offset, len(data)) + data))[0])

    def clunk(self, fid: int) -> None:
        self.rpc(T.CLUNK, pack("<I", fid))

    def getattr(self, fid: int) -> dict[str, int]:
        values = GETATTR_REPLY.unpack(self.rpc(T.GETATTR, pack("<IQ", fid, 0x7FF)))
        return dict(zip(("mode", "uid", "gid", "nlink", "rdev", "size"), values[2:8], strict=True)) | {
            "atime": values[10],
            "mtime": values[12],
        }

    def setattr(self, fid: int, valid: int, *, mode: int = 0, size: int = 0, mtime: int = 0) -> None:
        self.rpc(T.SETATTR, pack("<I", fid) + SETATTR_REQUEST.pack(valid, mode, 0, 0, size, 0, 0, mtime, 0))

    def list(self, fid: int, count: int = 512) -> dict[bytes, int]:
        """Return names and types of an open directory's entries, asked for in pieces."""
        found: dict[bytes, int] = {}
        place = 0
        while data := self.rpc(T.READDIR, pack("<IQI", fid, place, count))[4:]:
            at = 0
            while at < len(data):
                place, kind, size = unpack_from("<QBH", data, at + QID.size)
                start = at + QID.size + 11
                found[data[start : start + size]] = kind
                at = start + size
        return found

    def mkdir(self, fid: int, name: bytes, mode: int = 0o755) -> None:
        self.rpc(T.MKDIR, pack("<I", fid) + string(name) + pack("<II", mode, NO_UID))

    def symlink(self, fid: int, name: bytes, target: bytes) -> None:
        self.rpc(T.SYMLINK, pack("<I", fid) + string(name) + string(target) + pack("<I", NO_UID))

    def mknod(self, fid: int, name: bytes, mode: int) -> None:
        self.rpc(T.MKNOD, pack("<I", fid) + string(name) + pack("<IIII", mode, 1, 3, NO_UID))

    def readlink(self, fid: int) -> bytes:
        return self.rpc(T.READLINK, pack("<I", fid))[2:]

    def link(self, directory: int, fid: int, name: bytes) -> None:
        self.rpc(T.LINK, pack("<II", directory, fid) + string(name))

    def renameat(self, old: int, old_name: bytes, new: int, new_name: bytes) -> None:
        self.rpc(T.RENAMEAT, pack("<I", old) + string(old_name) + pack("<I", new) + string(new_name))

    def unlinkat(self, fid: int, name: bytes, flags: int = 0) -> None:
        self.rpc(T.UNLINKAT, pack("<I", fid) + string(name) + pack("<I", flags))


class FrontMessages:
    """The guest's end of one ring; `words` are its indices."""

    def __init__(self, services: FakeServices, order: int) -> None:
        self.services = services
        self.half = 1 << order + PAGE_SHIFT - 1
        pages = [services.page() for _ in range(1 << order)]
        gfn, page = services.page()
        self.words = page.cast("I")
        self.words[RING_ORDER] = order
        for number, (data_gfn, _) in enumerate(pages):
            self.words[RING_REFS + number] = services.grant(data_gfn)
        self.gref, self.port = services.grant(gfn), services.port()
        self.views = [view for _, view in pages]

    def place(self, index: int, data: bytes, *, out: bool = True) -> None:
        """Write where an index of the requests' ring, or the replies', points."""
        for at, byte in enumerate(data, index):
            offset = at % self.half + (self.half if out else 0)
            self.views[offset // PAGE_SIZE][offset % PAGE_SIZE] = byte

    def send(self, message: bytes) -> None:
        """Put a request into the ring, which has room for it."""
        prod = self.words[OUT_PROD]
        assert len(message) <= self.half - (prod - self.words[OUT_CONS] & INDEX_MASK)
        self.place(prod, message)
        self.words[OUT_PROD] = prod + len(message) & INDEX_MASK
        self.services.send(self.port)

    @property
    def waiting(self) -> int:
        return self.words[IN_PROD] - self.words[IN_CONS] & INDEX_MASK

    def receive(self) -> bytes:
        """Wait for a reply and take it."""
        self.services.until(lambda: self.waiting > 0, "reply")
        cons = self.words[IN_CONS]
        size = int.from_bytes(self._read(cons, 4), "little")
        assert size <= self.waiting, "a reply comes whole"
        message = self._read(cons, size)
        self.words[IN_CONS] = cons + size & INDEX_MASK
        self.services.send(self.port)
        return message

    def _read(self, index: int, size: int) -> bytes:
        offsets = (at % self.half for at in range(index, index + size))
        return bytes(self.views[offset // PAGE_SIZE][offset % PAGE_SIZE] for offset in offsets)

    def call(self, message: bytes) -> bytes:
        self.send(message)
        return self.receive()


class P9Driver(FakeDriver):
    """A guest's driver of a shared folder."""

    def __init__(self, services: FakeServices, backend: P9Backend, *, rings: int = 2, order: int = 2) -> None:
        super().__init__(services, backend)
        self.rings = [FrontMessages(services, order) for _ in range(rings)]

    def announce(self) -> None:
        """Write down what there is, and say so."""
        self.write({"version": 1, "num-rings": len(self.rings)})
        for number, ring in enumerate(self.rings):
            self.write({f"ring-ref{number}": ring.gref, f"event-channel-{number}": ring.port})
        self.switch(XenbusState.Initialised)

    def connect(self) -> None:
        self.announce()
        self.await_state(XenbusState.Connected)
        self.switch(XenbusState.Connected)
