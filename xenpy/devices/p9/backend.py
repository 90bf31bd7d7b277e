"""A shared folder in xenbus: rings with a thread each, and one server behind them.

Ref: docs/misc/9pfs.pandoc
"""

from __future__ import annotations

import resource
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final

from xenpy.abi.xen_9pfs import XEN_9PFS_VERSION
from xenpy.devices.p9.ring import MessageRing, ring_grefs
from xenpy.devices.p9.server import Server
from xenpy.devices.p9.tree import Tree
from xenpy.devices.xenbus import Backend, Nodes, Services
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config.devices import P9Config

MAX_RINGS: Final = 4
MAX_ORDER: Final = 8
"""512 KiB in each direction."""
_MAX_OPEN: Final = 512
_FD_SHARE: Final = 4
"""Unless its configuration says more, a folder gets at most a quarter of the files that this process may open."""


def open_folder(config: P9Config) -> Tree:
    """Open the folder of a p9= entry. Raises ConfigError."""
    for key, given in (
        ("max-space", config.max_space),
        ("max-files", config.max_files),
        ("auto-delete", config.auto_delete),
    ):
        if given:
            where = f"{config.position}: " if config.position else ""
            raise ConfigError(f"{where}p9: {key}= is not supported: a folder's size is its file system's to limit")
    return Tree(config.path)


class P9Backend(Backend):
    """A folder of the host's in a guest."""

    kind: ClassVar[str] = "9pfs"
    can_be_saved = False

    def __init__(self, services: Services, domid: int, config: P9Config, tree: Tree) -> None:
        super().__init__(services, domid, config.devid)
        self.config = config
        self._tree = tree
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._max_open = config.max_open_files or min(_MAX_OPEN, limit // _FD_SHARE)
        self._server: Server | None = None
        self._workers: list[_Worker] = []

    def backend_nodes(self) -> Nodes:
        """Return what libxl writes for a folder."""
        config = self.config
        return {"path": config.path, "security_model": config.security_model, "tag": config.tag}

    def frontend_nodes(self) -> Nodes:
        """Return what libxl writes for a folder."""
        return {"tag": self.config.tag}

    def offer(self) -> Nodes:
        """Return the transport's limits."""
        return {"versions": XEN_9PFS_VERSION, "max-rings": MAX_RINGS, "max-ring-page-order": MAX_ORDER}

    def connect(self) -> Nodes:
        """Map the frontend's rings and start a thread for each. Raises FrontendError, XenError, GrantError."""
        frontend = self.frontend
        frontend.number("version", XEN_9PFS_VERSION, low=XEN_9PFS_VERSION, high=XEN_9PFS_VERSION)
        count = frontend.number("num-rings", low=1, high=MAX_RINGS)
        with ExitStack() as undo:
            workers = []
            for number in range(count):
                worker = _Worker(self, frontend.gref(f"ring-ref{number}"), frontend.port(f"event-channel-{number}"))
                undo.callback(worker.let_go)
                workers.append(worker)
            undo.pop_all()
        self._workers = workers
        self._server = Server(self._tree, min(worker.ring.size for worker in workers), self._max_open)
        for worker in workers:
            worker.start(self._server)
        return {}

    def disconnect(self, done: Callable[[], None]) -> None:
        """Have the threads end after the requests that they are at, then close what the guest had open."""
        left = len(self._workers)
        server = self._server

        def one_done() -> None:  # under the lock
            nonlocal left
            left -= 1
            if not left:
                if server is not None:
                    server.close()
                done()

        for worker in self._workers:
            worker.stop(one_done)
        self._workers = []

    def release(self) -> None:
        """Let go of the folder."""
        self._tree.close()


class _Worker:
    """A ring with its pages, port and thread; made under the lock."""

    def __init__(self, device: P9Backend, gref: int, port: int) -> None:
        self._device = device
        services = self._services = device.services
        self._wanted = threading.Event()
        self._stopping = False
        self._on_end: Callable[[], None] | None = None
        with ExitStack() as undo:

            def page(gref: int) -> memoryview:
                return undo.enter_context(services.map_page(device.domid, gref)).view

            indices = page(gref)
            self.ring = MessageRing(indices, [page(each) for each in ring_grefs(indices, MAX_ORDER)])
            undo.callback(self.ring.close)
            self._port = services.bind(device.domid, port, self._wanted.set)
            undo.callback(services.unbind, self._port)
            self._resources = undo.pop_all()

    def start(self, server: Server) -> None:
        """Begin to serve."""
        params = self._device.params
        name = f"9pfs {params.domid}/{params.devid}"
        threading.Thread(target=self._run, args=(server,), name=name, daemon=True).start()

    def stop(self, on_end: Callable[[], None]) -> None:
        """Have the thread end and let go of the guest's pages; then call `on_end`, under the lock."""
        self._on_end = on_end
        self._stopping = True
        self._wanted.set()

    def let_go(self) -> None:
        """Give back pages and port; under the lock, when no thread uses them."""
        self._resources.close()

    def _run(self, server: Server) -> None:
        try:
            while self._sleep():
                self._serve(server)
        except Exception as error:  # of the frontend's making, or a bug of ours that must cost one device only
            self._device.fail(error)
            while self._sleep():
                pass
        with self._services.lock:
            self.let_go()
            if self._on_end is not None:
                self._on_end()

    def _sleep(self) -> bool:
        """Wait until the guest has something for us; tell whether we are to go on."""
        if not self._stopping:
            self._wanted.wait()
            self._wanted.clear()
        return not self._stopping

    def _serve(self, server: Server) -> None:
        """Carry out requests until none waits. Raises FrontendError."""
        while not self._stopping:
            message = self.ring.take()
            if message is None:
                return
            reply = server.handle(message)
            while self.ring.room() < len(reply):
                self._services.notify(self._port)
                if not self._sleep():
                    return
            self.ring.put(reply)
            self._services.notify(self._port)
