"""Xenstore: a tree of small values that guests, backends and tools share, with watches, transactions and permissions.

`Xenstore` is the store and the privileged access of code in this process; `Ring` connects a guest and
`socket.SocketServer` unmodified tools.
"""

from xenpy.pv.xenstore.client import Client, LocalWatch
from xenpy.pv.xenstore.connection import Connection
from xenpy.pv.xenstore.quota import Quotas
from xenpy.pv.xenstore.ring import Ring
from xenpy.pv.xenstore.server import DomainHooks, Xenstore
from xenpy.pv.xenstore.tree import Perm

__all__ = ["Client", "Connection", "DomainHooks", "LocalWatch", "Perm", "Quotas", "Ring", "Xenstore"]
