"""kill -9 of what serves a disk, at any moment: every request is answered once, and no acknowledged write is lost."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from isolation_hammer import Hammer, Killer
from isolation_rig import isolated, keeper
from vbd_rig import disk_of

if TYPE_CHECKING:
    from pathlib import Path

KILLS = int(os.environ.get("XENPY_TEST_KILLS", "100"))
"""Of each kind of frontend."""
SIZE = 4 << 20


@pytest.mark.parametrize("persistent", [True, False])
def test_no_write_is_lost(tmp_path: Path, persistent: bool) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(1).randbytes(SIZE))
    with isolated(disk_of(image)) as frontend:
        hammer = Hammer(frontend, frontend.connect(persistent=persistent), image, seed=KILLS)
        killer = Killer(frontend, KILLS, seed=1, longest_s=0.05)
        hammer.run(killer)
        hammer.finish()
        assert keeper(frontend).deaths == KILLS
