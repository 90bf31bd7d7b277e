"""A server of 9P2000.L for one client: requests in, replies out. It acts as the user that it runs as.

Locks are granted as they come: a guest keeps its own, and has no share in the host's. Extended attributes are not supported.

Ref: diod, protocol.md
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Final

from xenpy.abi.p9 import (
    AT_REMOVEDIR,
    HEADER,
    LOCK_SUCCESS,
    LOCK_TYPE_UNLCK,
    MAX_WALK,
    NO_UID,
    OPEN,
    READ_OVERHEAD,
    RLERROR,
    SETATTR,
    SETATTR_REQUEST,
    UNKNOWN_VERSION,
    VERSION,
    T,
)
from xenpy.devices.p9.files import Fid, Fids
from xenpy.devices.p9.messages import Fields, attributes, capacity, qid_of, qids, strings, u32
from xenpy.devices.p9.tree import Node, check_name, fault, through

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.devices.p9.tree import Tree

MIN_MSIZE: Final = 4096
_MAX_OFFSET: Final = (1 << 63) - 1
_CREATABLE: Final = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_PERMISSIONS: Final = 0o7777
_NS: Final = 10**9


class Server:
    """Serves `tree` in messages of at most `msize` bytes, with at most `max_open` open files. Thread-safe."""

    def __init__(self, tree: Tree, msize: int, max_open: int) -> None:
        self._tree = tree
        self._msize = self._max_msize = msize
        self._fids = Fids(max_open)
        self._lock = threading.Lock()
        self._owns = os.geteuid() == 0

    def handle(self, message: bytes) -> bytes:
        """Carry out a request, `size[4] type[1] tag[2]` and its fields, and return the reply. Raises FrontendError."""
        _, kind, tag = HEADER.unpack_from(message)
        handler = _HANDLERS.get(kind)
        with self._lock:
            try:
                if handler is None:
                    raise fault(errno.EOPNOTSUPP)
                body = handler(self, Fields(message[HEADER.size :]))
                kind += 1
            except OSError as error:
                body = u32(error.errno or errno.EIO)
                kind = RLERROR
        return HEADER.pack(HEADER.size + len(body), kind, tag) + body

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            self._fids.close_all()

    # -- the session --------------------------------------------------------------------------------------------------

    def _version(self, fields: Fields) -> bytes:
        self._fids.close_all()
        msize = fields.u32()
        if msize < MIN_MSIZE:
            raise fault(errno.EINVAL)
        self._msize = min(msize, self._max_msize)
        return u32(self._msize) + strings(VERSION if fields.string() == VERSION else UNKNOWN_VERSION)

    def _attach(self, fields: Fields) -> bytes:
        number, _afid = fields.u32(), fields.u32()
        fields.string(), fields.string()  # a name of a user, and of a tree, of which there is one
        root = self._tree.root
        with self._tree.pinned(root) as fd:
            self._fids.add(number, Fid(root, fields.u32()))
            return self._qid(fd)

    def _flush(self, fields: Fields) -> bytes:
        fields.u16()  # what it was about has been answered: requests are carried out one by one
        return b""

    def _walk(self, fields: Fields) -> bytes:
        number, new_number = fields.u32(), fields.u32()
        names = [fields.string() for _ in range(self._bounded(fields.u16()))]
        fid = self._fids[number]
        found: list[bytes] = []
        node = fid.node
        try:
            for name in names:
                node = self._enter(node, name)
                with self._tree.pinned(node) as fd:
                    found.append(self._qid(fd))
        except OSError:
            if not found:
                raise
            return qids(found)
        if number == new_number:
            if fid.fd >= 0:
                raise fault(errno.EBADF)
            fid.node = node
        else:
            self._fids.add(new_number, Fid(node, fid.uid))
        return qids(found)

    @staticmethod
    def _bounded(count: int) -> int:
        if count > MAX_WALK:
            raise fault(errno.EINVAL)
        return count

    @staticmethod
    def _enter(node: Node, name: bytes) -> Node:
        if name == b"..":
            return node.parent or node
        return node.child(check_name(name))

    def _clunk(self, fields: Fields) -> bytes:
        self._fids.close(fields.u32())
        return b""

    # -- open files ---------------------------------------------------------------------------------------------------

    def _lopen(self, fields: Fields) -> bytes:
        fid, flags = self._fids[fields.u32()], fields.u32()
        if fid.fd >= 0:
            raise fault(errno.EBADF)
        self._fids.make_room()
        self._fids.opened(fid, self._tree.open(fid.node, _flags(flags) | flags & OPEN.TRUNC))
        return self._qid(fid.fd) + u32(0)

    def _lcreate(self, fields: Fields) -> bytes:
        fid, name, flags = self._fids[fields.u32()], check_name(fields.string()), fields.u32()
        mode, gid = fields.u32() & _PERMISSIONS, fields.u32()
        if fid.fd >= 0:
            raise fault(errno.EBADF)
        self._fids.make_room()
        node = fid.node.child(name)
        try:
            # Only what is made here may be opened without a look at what it is.
            with self._tree.pinned(fid.node) as directory:
                made = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, _flags(flags) | made, mode, dir_fd=directory)
        except FileExistsError:
            if flags & OPEN.EXCL:
                raise
            fd = self._tree.open(node, _flags(flags) | flags & OPEN.TRUNC)
        else:
            try:
                self._own(fd, fid, gid, mode)
            except OSError:
                os.close(fd)
                raise
        fid.node = node
        self._fids.opened(fid, fd)
        return self._qid(fd) + u32(0)

    def _read(self, fields: Fields) -> bytes:
        fd, offset = self._fids[fields.u32()].descriptor(), self._offset(fields.u64())
        data = os.pread(fd, min(fields.u32(), self._msize - READ_OVERHEAD), offset)
        return u32(len(data)) + data

    def _write(self, fields: Fields) -> bytes:
        fd, offset = self._fids[fields.u32()].descriptor(), fields.u64()
        size = fields.u32()
        self._offset(offset + size)
        return u32(os.pwrite(fd, fields.data(size), offset))

    def _readdir(self, fields: Fields) -> bytes:
        fid, place = self._fids[fields.u32()], self._offset(fields.u64())
        data = fid.entries(place, min(fields.u32(), self._msize - READ_OVERHEAD))
        return u32(len(data)) + data

    def _fsync(self, fields: Fields) -> bytes:
        fd = self._fids[fields.u32()].descriptor()
        os.fdatasync(fd) if fields.u32() else os.fsync(fd)
        return b""

    def _take_lock(self, fields: Fields) -> bytes:
        self._fids[fields.u32()].descriptor()
        return bytes([LOCK_SUCCESS])

    def _get_lock(self, fields: Fields) -> bytes:
        self._fids[fields.u32()].descriptor()
        fields.data(1)
        return bytes([LOCK_TYPE_UNLCK]) + bytes(fields.data(20)) + strings(fields.string())

    # -- what is known of a file --------------------------------------------------------------------------------------

    def _getattr(self, fields: Fields) -> bytes:
        fid = self._fids[fields.u32()]
        if fid.fd >= 0:  # it may have been removed meanwhile
            return attributes(os.fstat(fid.fd), self._tree.device)
        with self._tree.pinned(fid.node) as fd:
            return attributes(os.fstat(fd), self._tree.device)

    def _setattr(self, fields: Fields) -> bytes:
        fid = self._fids[fields.u32()]
        values = fields.unpack(SETATTR_REQUEST)
        if fid.fd >= 0:
            self._set(fid.fd, *values)
        else:
            with self._tree.pinned(fid.node) as fd:
                self._set(fd, *values)
        return b""

    def _set(
        self, fd: int, valid: int, mode: int, uid: int, gid: int, size: int, atime: int, atime_ns: int, mtime: int,
        mtime_ns: int,
    ) -> None:  # fmt: skip
        path = through(fd)
        if valid & SETATTR.SIZE:
            os.truncate(path, self._offset(size))
        if valid & (SETATTR.UID | SETATTR.GID):
            os.chown(path, _id(uid if valid & SETATTR.UID else NO_UID), _id(gid if valid & SETATTR.GID else NO_UID))
        if valid & SETATTR.MODE:
            path.chmod(mode & _PERMISSIONS)
        if valid & (SETATTR.ATIME | SETATTR.MTIME):
            before, now = os.fstat(fd), time.time_ns()
            given = valid & SETATTR.ATIME_SET, valid & SETATTR.MTIME_SET
            times = (
                before.st_atime_ns if not valid & SETATTR.ATIME else _time(atime, atime_ns) if given[0] else now,
                before.st_mtime_ns if not valid & SETATTR.MTIME else _time(mtime, mtime_ns) if given[1] else now,
            )
            os.utime(path, ns=times)

    def _readlink(self, fields: Fields) -> bytes:
        with self._tree.pinned(self._fids[fields.u32()].node) as fd:
            return strings(os.readlink(b"", dir_fd=fd))

    def _statfs(self, fields: Fields) -> bytes:
        with self._tree.pinned(self._fids[fields.u32()].node) as fd:
            return capacity(os.statvfs(fd))

    # -- the tree -----------------------------------------------------------------------------------------------------

    def _mkdir(self, fields: Fields) -> bytes:
        fid, name = self._fids[fields.u32()], check_name(fields.string())
        mode, gid = fields.u32() & _PERMISSIONS, fields.u32()
        return self._make(fid, name, gid, mode, lambda directory: os.mkdir(name, mode, dir_fd=directory))

    def _symlink(self, fields: Fields) -> bytes:
        fid, name, target, gid = self._fids[fields.u32()], check_name(fields.string()), fields.string(), fields.u32()
        if not target or b"\0" in target:
            raise fault(errno.EINVAL)
        return self._make(fid, name, gid, None, lambda directory: os.symlink(target, name, dir_fd=directory))

    def _mknod(self, fields: Fields) -> bytes:
        fid, name, mode = self._fids[fields.u32()], check_name(fields.string()), fields.u32()
        _major, _minor, gid = fields.u32(), fields.u32(), fields.u32()
        if stat.S_IFMT(mode) not in _CREATABLE:  # a device would be the host's
            raise fault(errno.EPERM)
        return self._make(fid, name, gid, mode, lambda directory: os.mknod(name, mode, dir_fd=directory))

    def _make(self, fid: Fid, name: bytes, gid: int, mode: int | None, action: Callable[[int], None]) -> bytes:
        """Make something in a directory, for its maker to own, and return its qid."""
        with self._tree.pinned(fid.node) as directory:
            action(directory)
        with self._tree.pinned(fid.node.child(name)) as fd:
            self._own(fd, fid, gid, mode)
            return self._qid(fd)

    def _link(self, fields: Fields) -> bytes:
        directory, source, name = self._fids[fields.u32()], self._fids[fields.u32()], check_name(fields.string())
        with self._tree.parent(source.node) as (old, old_name), self._tree.pinned(directory.node) as new:
            os.link(old_name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        return b""

    def _rename(self, fields: Fields) -> bytes:
        fid, directory, name = self._fids[fields.u32()], self._fids[fields.u32()], check_name(fields.string())
        if fid.node.parent is None:
            raise fault(errno.EBUSY)
        self._move(fid.node.parent, fid.node.name, directory.node, name)
        return b""

    def _renameat(self, fields: Fields) -> bytes:
        old, old_name = self._fids[fields.u32()], check_name(fields.string())
        new, new_name = self._fids[fields.u32()], check_name(fields.string())
        self._move(old.node, old_name, new.node, new_name)
        return b""

    def _move(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        with self._tree.pinned(old) as source, self._tree.pinned(new) as target:
            os.rename(old_name, new_name, src_dir_fd=source, dst_dir_fd=target)
        old.moved(old_name, new, new_name)

    def _unlinkat(self, fields: Fields) -> bytes:
        fid, name, flags = self._fids[fields.u32()], check_name(fields.string()), fields.u32()
        self._take_away(fid.node, name, directory=bool(flags & AT_REMOVEDIR))
        return b""

    def _remove(self, fields: Fields) -> bytes:
        number = fields.u32()
        node = self._fids[number].node
        try:
            with self._tree.pinned(node) as fd:
                directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            if node.parent is None:
                raise fault(errno.EBUSY)
            self._take_away(node.parent, node.name, directory=directory)
        finally:
            self._fids.close(number)
        return b""

    def _take_away(self, node: Node, name: bytes, *, directory: bool) -> None:
        with self._tree.pinned(node) as fd:
            (os.rmdir if directory else os.unlink)(name, dir_fd=fd)
        node.removed(name)

    # -- odds and ends ------------------------------------------------------------------------------------------------

    def _qid(self, fd: int) -> bytes:
        return qid_of(os.fstat(fd), self._tree.device)

    @staticmethod
    def _offset(value: int) -> int:
        if value > _MAX_OFFSET:
            raise fault(errno.EFBIG)
        return value

    def _own(self, fd: int, fid: Fid, gid: int, mode: int | None) -> None:
        """Make a new file the user's who made it, if that is ours to give, and its mode what was asked for despite our umask."""
        if self._owns:
            os.chown(through(fd), _id(fid.uid), _id(gid))
        if mode is not None:
            through(fd).chmod(mode & _PERMISSIONS)


def _flags(flags: int) -> int:
    """Return what open(2) is to be told, beyond truncation, which is only for files that there are."""
    if flags & OPEN.ACCMODE == OPEN.ACCMODE:
        raise fault(errno.EINVAL)
    return flags & (OPEN.ACCMODE | OPEN.DSYNC | OPEN.SYNC)


def _id(number: int) -> int:
    return -1 if number == NO_UID else number


def _time(seconds: int, nanoseconds: int) -> int:
    if nanoseconds >= _NS:
        raise fault(errno.EINVAL)
    return seconds * _NS + nanoseconds


_HANDLERS: Final[Mapping[int, Callable[[Server, Fields], bytes]]] = {
    T.STATFS: Server._statfs,
    T.LOPEN: Server._lopen,
    T.LCREATE: Server._lcreate,
    T.SYMLINK: Server._symlink,
    T.MKNOD: Server._mknod,
    T.RENAME: Server._rename,
    T.READLINK: Server._readlink,
    T.GETATTR: Server._getattr,
    T.SETATTR: Server._setattr,
    T.READDIR: Server._readdir,
    T.FSYNC: Server._fsync,
    T.LOCK: Server._take_lock,
    T.GETLOCK: Server._get_lock,
    T.LINK: Server._link,
    T.MKDIR: Server._mkdir,
    T.RENAMEAT: Server._renameat,
    T.UNLINKAT: Server._unlinkat,
    T.VERSION: Server._version,
    T.ATTACH: Server._attach,
    T.FLUSH: Server._flush,
    T.WALK: Server._walk,
    T.READ: Server._read,
    T.WRITE: Server._write,
    T.CLUNK: Server._clunk,
    T.REMOVE: Server._remove,
}
