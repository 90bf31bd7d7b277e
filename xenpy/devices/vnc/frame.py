"""Pictures of a screen, and where two of them differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PIXEL: Final = 4
_BITS: Final = 8
_NEAR: Final = 4
"""Changed rows that so few unchanged ones part go into one rectangle."""


class Rect(NamedTuple):
    """A part of a screen, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def within(self, width: int, height: int) -> Rect:
        """Return what of it is on a screen of that size; its width or height is 0 if nothing is."""
        x, y = min(self.x, width), min(self.y, height)
        return Rect(x, y, min(self.width, width - x), min(self.height, height - y))


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a screen shows: rows from the top, pixels of 4 bytes: blue, green, red, and one of no meaning."""

    width: int
    height: int
    data: bytes

    @property
    def whole(self) -> Rect:
        """Return the rectangle of all of it."""
        return Rect(0, 0, self.width, self.height)

    def cut(self, rect: Rect) -> bytes:
        """Return the pixels of a part, row by row."""
        row = self.width * PIXEL
        start = rect.y * row + rect.x * PIXEL
        if rect.width == self.width:
            return self.data[start : start + rect.height * row]
        size, data = rect.width * PIXEL, self.data
        return b"".join([data[at : at + size] for at in range(start, start + rect.height * row, row)])

    def changes(self, before: Frame) -> list[Rect]:
        """Return rectangles that hold all that is not as it was in a frame of the same size."""
        if self.data == before.data:
            return []
        return list(_bands(self._changed_rows(before)))

    def _changed_rows(self, before: Frame) -> Iterator[tuple[int, int, int]]:
        """Yield the changed rows, and the first and last of the pixels in them that are not the same."""
        row = self.width * PIXEL
        for y in range(self.height):
            new, old = self.data[y * row : (y + 1) * row], before.data[y * row : (y + 1) * row]
            if new != old:
                bits = int.from_bytes(new, "little") ^ int.from_bytes(old, "little")
                pixel = PIXEL * _BITS
                yield y, ((bits & -bits).bit_length() - 1) // pixel, (bits.bit_length() - 1) // pixel


def _bands(rows: Iterator[tuple[int, int, int]]) -> Iterator[Rect]:
    """Yield rectangles around changed rows, those near each other together."""
    top, left, right = next(rows)
    bottom = top
    for y, first, last in rows:
        if y - bottom > _NEAR:
            yield Rect(left, top, right - left + 1, bottom - top + 1)
            top, left, right = y, first, last
        bottom, left, right = y, min(left, first), max(right, last)
    yield Rect(left, top, right - left + 1, bottom - top + 1)
