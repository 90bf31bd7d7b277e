"""Who hears of every guest that the API makes: the pytest plugin. Imports nothing, so that registering costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.api.guest import Guest

on_created: list[Callable[[Guest], None]] = []
"""Called with each new guest, before it runs, in the thread that makes it."""
