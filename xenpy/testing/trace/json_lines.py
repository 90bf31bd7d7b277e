"""Records as JSON, one a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.testing.trace.output import Output
    from xenpy.testing.trace.record import Record


class JsonSink:
    """Writes records as JSON lines: the keys are those of `Record.as_dict`."""

    arguments = True

    def __init__(self, output: Output) -> None:
        self._output = output
        self._encode = json.JSONEncoder(separators=(",", ":")).encode

    def take(self, record: Record) -> None:
        """Write a line."""
        self._output.write(self._encode(record.as_dict()))

    def close(self) -> None:
        """Write what is left."""
        self._output.close()
