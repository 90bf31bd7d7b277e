"""The xenstore that most of its tests start from: empty but for the home of domain 5, which owns its data."""

from __future__ import annotations

import pytest
from xs_rig import Peer

from xenpy.pv.xenstore import Xenstore

HOME = "/local/domain/5"


@pytest.fixture
def store() -> Xenstore:
    return Xenstore()


@pytest.fixture
def dom0(store: Xenstore) -> Peer:
    return Peer(store)


@pytest.fixture
def guest(store: Xenstore) -> Peer:
    peer = Peer(store, 5)
    store.mkdir(HOME, ["n0", "r5"])
    store.mkdir(f"{HOME}/data", ["n5"])
    return peer
