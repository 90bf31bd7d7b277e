"""A keyboard and pointer in xenbus.

Ref: xen/include/public/io/kbdif.h
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final

from xenpy.abi.kbdif import (
    IN_CONS,
    IN_PROD,
    INDEX_MASK,
    KEY,
    MOTION,
    XENKBD_IN_EVENT_SIZE,
    XENKBD_IN_RING_LEN,
    XENKBD_IN_RING_OFFS,
    XENKBD_TYPE,
)
from xenpy.devices.vkbd.keys import strokes
from xenpy.devices.xenbus import Backend, Nodes, Services
from xenpy.errors import FrontendError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config.devices import VkbConfig

_MAX_WAITING: Final = 1 << 16
"""Events kept for a guest that does not take them; more of them are refused."""


class Vkbd(Backend):
    """One vkb= entry, or what comes with a vfb= entry."""

    kind: ClassVar[str] = "vkbd"

    def __init__(self, services: Services, domid: int, config: VkbConfig) -> None:
        super().__init__(services, domid, config.devid)
        self.config = config
        self.absolute = False
        """Whether the guest wants positions of the pointer, and not motions."""
        self._page: memoryview | None = None
        self._words = memoryview(b"")
        self._port = 0
        self._resources = ExitStack()
        self._waiting: deque[bytes] = deque()

    def backend_nodes(self) -> Nodes:
        """Return what libxl writes for a keyboard."""
        config = self.config
        nodes: Nodes = {"backend-type": config.backend_type or "linux"}
        return nodes if config.unique_id is None else nodes | {"unique-id": config.unique_id}

    def offer(self) -> Nodes:
        """Return what is asked for of the features we have; positions at any rate."""
        config = self.config
        nodes: Nodes = {
            "feature-disable-keyboard": int(config.feature_disable_keyboard),
            "feature-disable-pointer": int(config.feature_disable_pointer),
            "feature-abs-pointer": 1,
        }
        sizes = {"width": config.width, "height": config.height}
        return nodes | {name: size for name, size in sizes.items() if size}

    def connect(self) -> Nodes:
        """Map the ring and bind to its port. Raises FrontendError, XenError, GrantError."""
        services, frontend = self.services, self.frontend
        self.absolute = frontend.flag("request-abs-pointer")
        with ExitStack() as undo:
            page = undo.enter_context(services.map_page(self.domid, frontend.gref("page-gref"))).view
            words = page.cast("I")
            undo.callback(words.release)
            # The channel comes last: to bind makes an event pending.
            self._page, self._words = page, words
            undo.callback(self._forget)
            self._port = services.bind(self.domid, frontend.port("event-channel"), self._flush)
            undo.callback(services.unbind, self._port)
            self._resources = undo.pop_all()
        return {}

    def _forget(self) -> None:
        self._page = None
        self._waiting.clear()

    def disconnect(self, done: Callable[[], None]) -> None:
        """Let go of the ring; what was typed and not taken is lost."""
        self._resources.close()
        done()

    def release(self) -> None:
        """Do nothing: there is nothing of the host's."""

    # -- what a user does ---------------------------------------------------------------------------------------------

    def key(self, code: int, *, pressed: bool) -> None:
        """Press or release a key, or a button of the pointer; codes are Linux's. Raises HostError as all of these."""
        self._send(KEY.pack(XENKBD_TYPE.KEY, pressed, code))

    def type(self, text: str) -> None:
        """Type characters that an American keyboard has. Raises ConfigError for others, having typed nothing."""
        for code, pressed in strokes(text):
            self.key(code, pressed=pressed)

    def move(self, x: int, y: int, wheel: int = 0) -> None:
        """Move the pointer, by so many pixels or, if the guest wants it `absolute`, there."""
        kind = XENKBD_TYPE.POS if self.absolute else XENKBD_TYPE.MOTION
        self._send(MOTION.pack(kind, x, y, wheel))

    def _send(self, event: bytes) -> None:
        with self.services.lock:
            if self._page is None:
                raise HostError(f"domain {self.domid}: no driver is connected to keyboard {self.params.devid}")
            if len(self._waiting) >= _MAX_WAITING:
                raise HostError(f"domain {self.domid}: nobody takes what keyboard {self.params.devid} sends")
            self._waiting.append(event)
            self._flush()

    def _flush(self) -> None:
        """Give the guest what its ring has room for; under the lock."""
        page, words = self._page, self._words
        if page is None or not self._waiting:
            return
        cons, prod = words[IN_CONS], words[IN_PROD]
        queued = (prod - cons) & INDEX_MASK
        if queued > XENKBD_IN_RING_LEN:
            self._waiting.clear()
            self.fail(FrontendError(f"indices {prod:#x} and {cons:#x} of a ring of {XENKBD_IN_RING_LEN} events"))
            return
        room = min(XENKBD_IN_RING_LEN - queued, len(self._waiting))
        for index in range(prod, prod + room):
            # As the other side counts: the ring's length is no power of two, so indices are cut to 32 bits first.
            at = XENKBD_IN_RING_OFFS + (index & INDEX_MASK) % XENKBD_IN_RING_LEN * XENKBD_IN_EVENT_SIZE
            page[at : at + XENKBD_IN_EVENT_SIZE] = self._waiting.popleft()
        words[IN_PROD] = (prod + room) & INDEX_MASK
        if room:
            self.services.notify(self._port)
