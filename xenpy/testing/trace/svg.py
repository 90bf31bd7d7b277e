"""A small writer of SVG pictures. Ref: W3C SVG 1.1"""

from __future__ import annotations

from html import escape

_STYLE = (
    "text{font:11px sans-serif;fill:#333}.title{font-size:15px;font-weight:bold}.small{font-size:10px}"
    ".faint{fill:#888}.grid{stroke:#ddd}.mark{stroke:#b33;stroke-dasharray:3 3}.lane{fill:#f6f6f6}"
)


class Picture:
    """A picture of `width` by `height` pixels, drawn from back to front; texts may be anything a guest came up with."""

    def __init__(self, width: float, height: float) -> None:
        self._size = width, height
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, *, fill: str = "", css: str = "", tip: str = ""
    ) -> None:
        """Draw a filled rectangle; `tip` shows when the pointer is on it."""
        paint = f' fill="{fill}"' if fill else ""
        self._element("rect", f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"{paint}', css, tip)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, css: str = "", tip: str = "") -> None:
        """Draw a line."""
        self._element("line", f'x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}"', css, tip)

    def text(self, x: float, y: float, text: str, *, css: str = "", anchor: str = "start", turn: float = 0) -> None:
        """Write a text whose base line begins, or with anchor="middle" or "end" lies, at a point; `turn` in degrees."""
        rotation = f' transform="rotate({turn:g} {x:.2f} {y:.2f})"' if turn else ""
        where = f'x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}"{rotation}'
        self._parts.append(f"<text {where}{_class(css)}>{escape(_legal(text))}</text>")

    def _element(self, name: str, attributes: str, css: str, tip: str) -> None:
        inside = f"<title>{escape(_legal(tip))}</title>" if tip else ""
        self._parts.append(f"<{name} {attributes}{_class(css)}>{inside}</{name}>")

    def render(self) -> str:
        """Return the document."""
        width, height = self._size
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">'
        paper = f'<rect width="{width:g}" height="{height:g}" fill="white"></rect>'
        return "\n".join([head, f"<style>{_STYLE}</style>", paper, *self._parts, "</svg>", ""])


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _legal(text: str) -> str:
    """Replace characters that XML does not have. Ref: W3C XML 1.0, Char"""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
