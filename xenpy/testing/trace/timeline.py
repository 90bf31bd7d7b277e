"""A picture of a boot: hypercalls of each vCPU, xenstore messages, events, grants and console lines over time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError
from xenpy.testing.trace.density import Density
from xenpy.testing.trace.milestones import Milestones
from xenpy.testing.trace.output import open_file
from xenpy.testing.trace.record import Kind
from xenpy.testing.trace.svg import Picture

if TYPE_CHECKING:
    import os

    from xenpy.testing.trace.record import Record

_WIDTH: Final = 1280
_LEFT: Final = 130
_RIGHT: Final = 170
"""Room for the last labels, which lean to the right."""
_TOP: Final = 190
_LANE: Final = 56
_GAP: Final = 10
_COLUMNS: Final = 490
_LABEL_STEP: Final = 13
_COLOURS: Final = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99")
"""Distinct for colour-blind eyes too. Ref: Paul Tol, SRON/EPS/TN/09-002"""
_OTHER: Final = "#bbbbbb"
_PLAIN: Final = "#8899aa"
_MAX_LANES: Final = 64
_MAX_GROUPS: Final = 256
_TICKS: Final = 10
_TO_PNG: Final = "rsvg-convert"
"""Reads SVG and writes PNG. Ref: librsvg, rsvg-convert(1)"""


class TimelineSink:
    """Draws a picture at the end, in the format that the file's name ends with: .png, else SVG.

    Raises ConfigError if the file cannot be written, or for a PNG without `rsvg-convert`.
    """

    arguments = True

    def __init__(self, path: str | os.PathLike[str], title: str = "") -> None:
        self._as_png = Path(path).suffix.lower() == ".png"
        if self._as_png and not shutil.which(_TO_PNG):
            raise ConfigError(f"{path}: a PNG needs {_TO_PNG} (Debian: apt install librsvg2-bin); SVG needs nothing")
        self._file = open_file(path)
        self._title = title
        self._density = Density()
        self._milestones = Milestones()
        self._lanes: set[str] = set()
        self._groups: set[str] = set()

    def take(self, record: Record) -> None:
        """Count a record."""
        self._milestones.take(record)
        if record.kind is Kind.HYPERCALL:
            lane, group = f"vCPU {record.vcpu_id}", record.name.partition(".")[0]
        else:
            lane, group = record.kind.value, record.kind.value
        if not self._fits(self._lanes, lane, _MAX_LANES):
            lane = "others"
        if not self._fits(self._groups, group, _MAX_GROUPS):
            group = "others"
        self._density.add(lane, group, record.time_ns + record.latency_ns)

    @staticmethod
    def _fits(known: set[str], name: str, limit: int) -> bool:
        if name not in known and len(known) < limit:
            known.add(name)
        return name in known

    def close(self) -> None:
        """Draw. Raises OSError."""
        picture = draw(self._density, self._milestones.marks, self._title)
        with self._file:
            if not self._as_png:
                self._file.write(picture)
                return
            done = subprocess.run(
                [_TO_PNG], input=picture.encode(), stdout=self._file.fileno(), stderr=subprocess.PIPE, check=False
            )
        if done.returncode:
            raise OSError(f"{_TO_PNG}: {done.stderr.decode(errors='replace').strip()}")


def draw(density: Density, marks: list[tuple[int, str]], title: str) -> str:
    """Return the picture as an SVG document."""
    lanes = sorted(density.lanes, key=_lane_order)
    end_ns = max([density.end_ns, 1, *(time_ns for time_ns, _ in marks)])
    bottom = _TOP + len(lanes) * (_LANE + _GAP)
    picture = Picture(_WIDTH, bottom + 60)
    picture.text(16, 24, title, css="title")
    colours = _colours(density, lanes)
    _draw_axis(picture, end_ns, bottom)
    for number, lane in enumerate(lanes):
        _draw_lane(picture, density, lane, _TOP + number * (_LANE + _GAP), end_ns, colours)
    _draw_marks(picture, marks, end_ns, bottom)
    _draw_legend(picture, colours, bottom + 44)
    return picture.render()


def _lane_order(lane: str) -> tuple[int, int, str]:
    if lane.startswith("vCPU "):
        return 0, int(lane.removeprefix("vCPU ")), lane
    kinds = [kind.value for kind in Kind]
    return 1, kinds.index(lane) if lane in kinds else len(kinds), lane


def _colours(density: Density, lanes: list[str]) -> dict[str, str]:
    """Give the hypercalls that are made most a colour of their own."""
    totals: dict[str, int] = {}
    for lane in lanes:
        if lane.startswith("vCPU "):
            for group, number in density.groups(lane).items():
                totals[group] = totals.get(group, 0) + number
    most = sorted(totals, key=lambda group: (-totals[group], group))[: len(_COLOURS)]
    return dict(zip(most, _COLOURS, strict=False))


def _x(time_ns: int, end_ns: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * time_ns / end_ns


def _draw_axis(picture: Picture, end_ns: int, bottom: float) -> None:
    step = _step(end_ns)
    for time_ns in range(0, end_ns + 1, step):
        x = _x(time_ns, end_ns)
        picture.line(x, _TOP - 6, x, bottom, css="grid")
        picture.text(x, bottom + 14, f"{time_ns / 1e9:g} s", css="small faint", anchor="middle")


def _step(end_ns: int) -> int:
    """Return a round number of ns of which at most `_TICKS` fit."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor * _TICKS >= end_ns:
                return step * factor
        step *= 10


def _draw_lane(picture: Picture, density: Density, lane: str, top: float, end_ns: int, colours: dict[str, str]) -> None:
    width = (_WIDTH - _LEFT - _RIGHT) / _COLUMNS
    picture.rect(_LEFT, top, _WIDTH - _LEFT - _RIGHT, _LANE, css="lane")
    columns = density.columns(lane, _COLUMNS, end_ns)
    tallest = max((sum(column.values()) for column in columns), default=0) or 1
    is_vcpu = lane.startswith("vCPU ")
    picture.text(_LEFT - 8, top + 20, f"hypercalls, {lane}" if is_vcpu else lane, anchor="end")
    column_ms = end_ns / _COLUMNS / 1e6
    total = sum(sum(column.values()) for column in columns)
    picture.text(_LEFT - 8, top + 34, f"{total} in all", css="small faint", anchor="end")
    picture.text(_LEFT - 8, top + 47, f"at most {tallest / column_ms:.3g}/ms", css="small faint", anchor="end")
    for index, column in enumerate(columns):
        y = top + _LANE
        others = sum(number for group, number in column.items() if is_vcpu and group not in colours)
        parts = [(group, column[group], colours[group]) for group in colours if is_vcpu and group in column]
        parts += [("others", others, _OTHER)] if others else []
        parts += [(lane, sum(column.values()), _PLAIN)] if not is_vcpu and column else []
        for group, number, colour in parts:
            height = _LANE * number / tallest
            y -= height
            when = f"{index * column_ms / 1e3:.3f} s"
            picture.rect(_LEFT + index * width, y, width, height, fill=colour, tip=f"{when}: {number} {group}")


def _draw_marks(picture: Picture, marks: list[tuple[int, str]], end_ns: int, bottom: float) -> None:
    label_x = 0.0
    for time_ns, label in marks:
        x = _x(time_ns, end_ns)
        label_x = max(x, label_x + _LABEL_STEP)
        picture.line(x, _TOP - 8, x, bottom, css="mark", tip=f"{time_ns / 1e9:.6f} s: {label}")
        picture.line(x, _TOP - 8, label_x, _TOP - 16, css="mark")
        picture.text(label_x + 3, _TOP - 18, f"{label} {time_ns / 1e9:.3f} s", css="small", turn=-50)


def _draw_legend(picture: Picture, colours: dict[str, str], y: float) -> None:
    x = float(_LEFT)
    for group, colour in [*colours.items(), ("others", _OTHER)] if colours else []:
        picture.rect(x, y - 9, 10, 10, fill=colour)
        picture.text(x + 14, y, group, css="small")
        x += 26 + 6.2 * len(group)
