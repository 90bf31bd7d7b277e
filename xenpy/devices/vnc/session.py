"""One viewer's conversation, without any input or output: bytes come in by `receive`, and `out` is what to send.

Ref: RFC 6143, 7
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.devices.vnc.encoders import SUPPORTED, Encoder
from xenpy.devices.vnc.frame import Rect
from xenpy.devices.vnc.keysyms import code_of_keysym, code_of_scancode
from xenpy.devices.vnc.password import is_right
from xenpy.devices.vnc.pixels import NATIVE, PixelFormat, ViewerError
from xenpy.devices.vnc.protocol import (
    CHALLENGE_SIZE,
    COLOUR_MAP,
    CUT_TEXT,
    EXTENDED_KEY,
    FIRST_WITH_CHOICE,
    FIRST_WITH_REASON,
    KEY_EVENT,
    MINORS,
    POINTER_EVENT,
    RECTANGLE,
    S32,
    SERVER_INIT,
    SET_ENCODINGS,
    SET_PIXEL_FORMAT,
    U8,
    U32,
    UPDATE,
    UPDATE_REQUEST,
    VERSION,
    Client,
    Encoding,
    Result,
    Security,
    Server,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from xenpy.devices.vnc.frame import Frame

_CHUNK: Final = 1 << 16
"""Bytes of a text that are taken at once, to be thrown away."""
_WRONG: Final = b"wrong password"
_MAX_RECTANGLES: Final = 0xFFFF


class Input(Protocol):
    """What a viewer's keys and pointer do."""

    def key(self, code: int, *, pressed: bool) -> None:
        """Press or release a key; codes are Linux's."""

    def pointer(self, x: int, y: int, buttons: int) -> None:
        """Have the pointer at a place, with these buttons of `protocol.Button` down."""


class Session:
    """A viewer from the first byte on; `receive` raises ViewerError when it has to go, after `out` was sent if possible.

    `on_open` is called when it is let in, and hears whether it wants others to stay.
    """

    def __init__(
        self, name: str, frame: Frame, sink: Input, password: str | None, on_open: Callable[[bool], None]
    ) -> None:
        self.out = bytearray(VERSION)
        self.ready = False
        """Whether the viewer was let in and has said all that comes first."""
        self._name = name.encode()
        self._width, self._height = frame.width, frame.height
        self._sink = sink
        self._password = password
        self._on_open = on_open
        self._format = NATIVE
        self._encoder = Encoder()
        self._resizable = False
        self._shown: Frame | None = None  # what the viewer has by now
        self._asked: Rect | None = None  # what it has asked for, not incrementally
        self._waits = False
        self._pressed: set[int] = set()
        self._came = bytearray()
        self._steps = self._converse()
        self._wanted = next(self._steps)
        self._handlers: Mapping[int, Callable[[], Generator[int, bytes, None]]] = {
            Client.SET_PIXEL_FORMAT: self._set_pixel_format,
            Client.SET_ENCODINGS: self._set_encodings,
            Client.UPDATE_REQUEST: self._update_request,
            Client.KEY_EVENT: self._key_event,
            Client.POINTER_EVENT: self._pointer_event,
            Client.CUT_TEXT: self._cut_text,
            Client.QEMU: self._qemu,
        }

    # -- from the network and to it -----------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the viewer has sent. Raises ViewerError."""
        came = self._came
        came += data
        while len(came) >= self._wanted:
            message = bytes(came[: self._wanted])
            del came[: self._wanted]
            self._wanted = self._steps.send(message)

    @property
    def waits(self) -> bool:
        """Tell whether the viewer wants to hear of changes, and has taken all that it was sent."""
        return self._waits and not self.out

    def update(self, frame: Frame) -> bool:
        """Queue what the viewer does not have yet of what the screen shows; tell whether there was anything."""
        resized = self._resizable and (frame.width, frame.height) != (self._width, self._height)
        if resized:
            self._width, self._height = frame.width, frame.height
            size = RECTANGLE.pack(0, 0, frame.width, frame.height, Encoding.DESKTOP_SIZE)
            self._shown = None  # what it has is undefined now, so the next update is of the whole
            self._send_update([size])
            return True
        rects = self._due(frame)
        if not rects:
            return False
        encoded = [part for rect in rects for part in self._encoder.rectangles(frame, rect, self._format)]
        if len(encoded) > _MAX_RECTANGLES:
            encoded = list(self._encoder.rectangles(frame, self._clip(frame.whole, frame), self._format))
        self._shown, self._asked = frame, None
        self._send_update(encoded)
        return True

    def _due(self, frame: Frame) -> list[Rect]:
        shown, asked = self._shown, self._asked
        if shown is None or (shown.width, shown.height) != (frame.width, frame.height):
            rects = [frame.whole]
        elif shown is frame:
            rects = []
        else:
            rects = frame.changes(shown)
        if asked is not None and frame.whole not in rects:
            rects.append(asked)
        clipped = (self._clip(rect, frame) for rect in rects)
        return [rect for rect in clipped if rect.width and rect.height]

    def _clip(self, rect: Rect, frame: Frame) -> Rect:
        """Return what of a rectangle is on the screen, and on that of a viewer whose size stays what it was."""
        return rect.within(frame.width, frame.height).within(self._width, self._height)

    def _send_update(self, rectangles: list[bytes]) -> None:
        self._waits = False
        self.out += UPDATE.pack(Server.UPDATE, len(rectangles))
        self.out += b"".join(rectangles)

    def end(self) -> None:
        """Release the keys and buttons that the viewer holds; it is gone."""
        for code in sorted(self._pressed):
            self._sink.key(code, pressed=False)
        self._pressed.clear()

    # -- the conversation: each step yields how many bytes it needs, and gets them ---------------------------------------

    def _converse(self) -> Generator[int, bytes, None]:
        minor = MINORS.get((yield len(VERSION)))
        if minor is None:
            raise ViewerError("speaks no version of RFB")
        yield from self._secure(minor)
        (shared,) = yield U8.size
        self._on_open(bool(shared))
        self.out += SERVER_INIT.pack(self._width, self._height, NATIVE.pack(), len(self._name)) + self._name
        self.ready = True
        while True:
            (kind,) = yield U8.size
            handler = self._handlers.get(kind)
            if handler is None:
                raise ViewerError(f"message {kind}")
            yield from handler()

    def _secure(self, minor: int) -> Generator[int, bytes, None]:
        security = Security.NONE if self._password is None else Security.VNC
        if minor < FIRST_WITH_CHOICE:
            self.out += U32.pack(security)
        else:
            self.out += bytes([1, security])  # one kind to choose from
            if (yield U8.size) != bytes([security]):
                raise ViewerError("chose security that was not offered")
        if self._password is not None:
            challenge = os.urandom(CHALLENGE_SIZE)
            self.out += challenge
            if not is_right(self._password, challenge, (yield CHALLENGE_SIZE)):
                self.out += U32.pack(Result.FAILED)
                if minor >= FIRST_WITH_REASON:
                    self.out += U32.pack(len(_WRONG)) + _WRONG
                raise ViewerError("wrong password")
        if self._password is not None or minor >= FIRST_WITH_REASON:
            self.out += U32.pack(Result.OK)

    def _set_pixel_format(self) -> Generator[int, bytes, None]:
        (data,) = SET_PIXEL_FORMAT.unpack((yield SET_PIXEL_FORMAT.size))
        self._format = PixelFormat.parse(data)
        if self._format.mapped:
            colours = self._format.colour_map()
            self.out += COLOUR_MAP.pack(Server.SET_COLOUR_MAP, 0, 1 << self._format.bits) + colours

    def _set_encodings(self) -> Generator[int, bytes, None]:
        (count,) = SET_ENCODINGS.unpack((yield SET_ENCODINGS.size))
        data = yield count * S32.size
        wanted = [number for (number,) in S32.iter_unpack(data)]
        self._encoder.encoding = next((Encoding(number) for number in wanted if number in SUPPORTED), Encoding.RAW)
        self._resizable = Encoding.DESKTOP_SIZE in wanted
        levels = [number - Encoding.LEVEL_0 for number in wanted if Encoding.LEVEL_0 <= number <= Encoding.LEVEL_9]
        if levels:
            self._encoder.level = levels[0]
        if Encoding.EXTENDED_KEY in wanted:
            # To say that it is supported is an update with a rectangle of no pixels.
            self.out += UPDATE.pack(Server.UPDATE, 1) + RECTANGLE.pack(0, 0, 0, 0, Encoding.EXTENDED_KEY)

    def _update_request(self) -> Generator[int, bytes, None]:
        incremental, *place = UPDATE_REQUEST.unpack((yield UPDATE_REQUEST.size))
        self._waits = True
        if not incremental:
            self._asked = Rect(*place)

    def _key_event(self) -> Generator[int, bytes, None]:
        pressed, keysym = KEY_EVENT.unpack((yield KEY_EVENT.size))
        self._key(code_of_keysym(keysym), pressed)

    def _key(self, code: int | None, pressed: int) -> None:
        """Pass a key on, if there is such a key; some viewers release what they did not press."""
        if code is None or (not pressed and code not in self._pressed):
            return
        (self._pressed.add if pressed else self._pressed.discard)(code)
        self._sink.key(code, pressed=bool(pressed))

    def _pointer_event(self) -> Generator[int, bytes, None]:
        buttons, x, y = POINTER_EVENT.unpack((yield POINTER_EVENT.size))
        self._sink.pointer(min(x, self._width - 1), min(y, self._height - 1), buttons)

    def _cut_text(self) -> Generator[int, bytes, None]:
        (left,) = CUT_TEXT.unpack((yield CUT_TEXT.size))
        while left:
            left -= len((yield min(left, _CHUNK)))

    def _qemu(self) -> Generator[int, bytes, None]:
        (kind,) = yield U8.size
        if kind:
            raise ViewerError(f"message {Client.QEMU}, {kind}")
        pressed, keysym, scancode = EXTENDED_KEY.unpack((yield EXTENDED_KEY.size))
        self._key(code_of_scancode(scancode) or code_of_keysym(keysym), pressed)
