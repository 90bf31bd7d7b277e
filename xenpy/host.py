"""The host: what in a Xen system would be the hypervisor and dom0 together. Domains, xenstore, our event channels."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING

from xenpy.devices.console import ConsoleRing
from xenpy.devices.registry import DeviceOptions, Devices
from xenpy.domain.ending import End, Ending
from xenpy.domain.idle import HaltWatch
from xenpy.domain.make import make_domain, restore_domain
from xenpy.errors import ConfigError, Errno, HostError, XenError
from xenpy.kvm.system import Kvm
from xenpy.loop import Loop
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.evtchn import HostPorts
from xenpy.pv.xenstore import Ring, Xenstore
from xenpy.pv.xenstore.saved import load_domain_nodes
from xenpy.pv.xenstore.toolstack import (
    ConsoleParams,
    DomainParams,
    RingParams,
    introduce_domain,
    release_domain,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenpy.config import DomainConfig
    from xenpy.devices.vfb.image import Image
    from xenpy.devices.vif.switch import Switches
    from xenpy.devices.vkbd.backend import Vkbd
    from xenpy.domain.domain import Domain
    from xenpy.domain.pv.probe import Traits
    from xenpy.gdb.server import GdbServer
    from xenpy.pv.evtchn import PortTable
    from xenpy.pv.gnttab import GrantMapping
    from xenpy.saved import GuestState, SavedGuest


def _ignore_end(_domain: Domain) -> None:
    """Do nothing: nobody waits for the domain."""


DOM0 = 0
_GREF_CONSOLE = 0
_GREF_XENSTORE = 1


class Guest:
    """A domain with its console, xenstore ring, devices and halt watch: what `Host.create` returns."""

    def __init__(
        self,
        host: Host,
        domain: Domain,
        devices: Devices,
        sink: Callable[[bytes], int],
        saved: GuestState | None = None,
    ) -> None:
        self.host = host
        self.domain = domain
        self.devices = devices
        self._halt_watch: HaltWatch | None = None
        self._gdb: GdbServer | None = None
        self._ports: list[int] = []
        connection = None
        if saved is None:
            self.store_port, self.console_port = self._connect(), self._connect()
            domain.set_ports(self.store_port, self.console_port)
        else:
            self.store_port, self.console_port, connection = saved.store_port, saved.console_port, saved.connection
            for port in (self.store_port, self.console_port):
                self._ports.append(host.ports.bind_interdomain(domain.domid, port))
            host.store.add_domain(domain.domid)
            load_domain_nodes(host.store, saved.nodes)
        ours_store, ours_console = self._ports
        self.ring = Ring(
            host.store, domain.domid, self._page(domain.store_gfn), lambda: host.notify(ours_store), resume=connection
        )
        self.console = ConsoleRing(self._page(domain.console_gfn), lambda: host.notify(ours_console), sink)
        if saved is not None:
            host.store.introduce(domain.domid, self.ring.connection)
            self.console.broken = saved.console_broken
            self.console.send_input(saved.console_input)
        host.ports.set_handler(ours_store, self.ring.on_event)
        host.ports.set_handler(ours_console, self.console.on_event)
        domain.late_port = self.console_port
        if saved is None:
            self._introduce()
            devices.start()
        else:
            devices.resume(saved.devices)

    def _introduce(self) -> None:
        """Write a new guest's tree, and grant on its behalf what its toolstack grants."""
        host, domain = self.host, self.domain
        domain.gnttab.seed(_GREF_CONSOLE, DOM0, domain.console_gfn)
        domain.gnttab.seed(_GREF_XENSTORE, DOM0, domain.store_gfn)
        config = domain.config
        params = DomainParams(
            domid=domain.domid, name=domain.name, uuid=str(config.uuid), memory_kib=config.memory_mib << 10,
            maxmem_kib=config.maxmem_mib << 10, type=config.type.value, vcpus=config.vcpus, maxvcpus=config.maxvcpus,
            store=RingParams(domain.store_gfn, self.store_port),
            console=ConsoleParams(RingParams(domain.console_gfn, self.console_port)),
        )  # fmt: skip
        introduce_domain(host.store, params, self.ring.connection)

    def _connect(self) -> int:
        """Make an event channel between the guest and us; return the guest's port."""
        port = self.domain.evtchn.alloc_unbound(DOM0)
        self._ports.append(self.host.ports.bind_interdomain(self.domain.domid, port))
        return port

    def _page(self, gfn: int) -> memoryview:
        return self.domain.memory.view(gfn << PAGE_SHIFT, PAGE_SIZE)

    def start(self) -> None:
        """Let the guest run."""
        self.domain.start()
        if not self.domain.is_pv:  # a PV guest says so when it ends
            self._halt_watch = HaltWatch(self.domain)

    def request_shutdown(self, how: str = "poweroff") -> None:
        """Ask the guest to end: `how` is poweroff, reboot, halt or suspend. Ref: xenstore-paths, control/shutdown"""
        self._tell({"control/shutdown": how})

    def set_memory_target(self, mib: int) -> None:
        """Ask the guest's balloon driver for a size, in MiB. Ref: xenstore-paths, memory/target"""
        self._tell({"memory/target": mib << 10})

    def set_vcpus(self, count: int) -> None:
        """Ask the guest to use its first `count` vCPUs, of at most maxvcpus=. Raises ConfigError.

        Ref: xenstore-paths, cpu/N/availability
        """
        most = len(self.domain.vcpus)
        if not 1 <= count <= most:
            raise ConfigError(f"{self.domain.name}: {count} vCPUs are not from 1 to maxvcpus={most}")
        words = {False: "offline", True: "online"}
        self._tell({f"cpu/{vcpu_id}/availability": words[vcpu_id < count] for vcpu_id in range(most)})

    def send_sysrq(self, key: str) -> None:
        """Give the guest's kernel a magic SysRq key, one letter or digit. Raises ConfigError.

        Ref: xenstore-paths, control/sysrq
        """
        if len(key) != 1 or not (key.isascii() and key.isalnum()):
            raise ConfigError(f"{self.domain.name}: {key!r} is not a SysRq key: one letter or digit")
        self._tell({"control/sysrq": key})

    def screenshot(self, devid: int = 0) -> Image:
        """Return what the guest shows on a framebuffer. Raises ConfigError if it has none, HostError if it shows nothing."""
        from xenpy.devices.vfb.backend import Vfb

        vfb = self.devices.find(Vfb.kind, devid)
        if not isinstance(vfb, Vfb):
            raise ConfigError(f"{self.domain.name} has no framebuffer {devid}: give it one with vfb=")
        return vfb.image()

    def vnc_address(self, devid: int = 0) -> tuple[str, int]:
        """Return the address and TCP port where viewers of a framebuffer connect. Raises ConfigError if there is none."""
        from xenpy.devices.vfb.backend import Vfb

        vfb = self.devices.find(Vfb.kind, devid)
        if not isinstance(vfb, Vfb) or vfb.viewers is None:
            raise ConfigError(f"{self.domain.name} has no framebuffer {devid} with VNC: give it one with vfb=['vnc=1']")
        return vfb.viewers.address

    def keyboard(self, devid: int = 0) -> Vkbd:
        """Return a keyboard and pointer of the guest's. Raises ConfigError if it has none."""
        from xenpy.devices.vkbd.backend import Vkbd

        vkbd = self.devices.find(Vkbd.kind, devid)
        if not isinstance(vkbd, Vkbd):
            raise ConfigError(f"{self.domain.name} has no keyboard {devid}: give it one with vkb= or vfb=")
        return vkbd

    def _tell(self, nodes: dict[str, str | int]) -> None:
        """Write nodes that the guest watches."""
        with self.host.lock:
            for name, value in nodes.items():
                self.host.store.write(f"/local/domain/{self.domain.domid}/{name}", value)

    def gdb(self, port: int = 0, *, hold: bool = False) -> str:
        """Listen for a debugger at a TCP port, 0 for a free one, and return the address.

        A guest that has not been started yet waits for it, and with `hold` one that runs is stopped until one comes. In the loop's thread.
        Raises HostError if the port cannot be had.
        """
        from xenpy.gdb.server import GdbServer

        if self._gdb is None:
            fresh = all(vcpu.thread is None for vcpu in self.domain.vcpus)
            self._gdb = GdbServer(self.domain, port, hold=hold or fresh)
        return self._gdb.address

    def close(self) -> None:
        """End the guest if it has not ended, and free all of it."""
        if self._gdb is not None:
            self._gdb.close()
            self._gdb = None
        if self._halt_watch is not None:
            self._halt_watch.close()
        if self.domain.ending is None:
            self.domain.end(Ending(End.DESTROYED))
        self.domain.wait_closed(10)
        self.devices.close()
        with self.host.lock:
            for port in self._ports:
                self.host.unbind(port)
            self.ring.detach()
            release_domain(self.host.store, self.domain.domid)
            self.host.domains.pop(self.domain.domid, None)
        self.domain.close()


class Host:
    """Everything the guests of one process share. Raises HostError when KVM is not to be had."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.kvm = Kvm()
        self.loop = Loop()
        self.store = Xenstore(lock=self.lock)
        self.domains: dict[int, Domain] = {}
        self.ports = HostPorts(DOM0, lookup=self._ports_of)
        self._next_domid = 1
        self.on_end: Callable[[Domain], None] = _ignore_end

    def _ports_of(self, domid: int) -> PortTable:
        return self.domain(domid).evtchn

    def pv_traits(self) -> Traits:
        """Return what matters of this host's KVM to PV guests. Raises HostError where they cannot run."""
        from xenpy.domain.pv.probe import traits_of

        return traits_of(self.kvm)

    def domain(self, domid: int) -> Domain:
        """Return a domain. Raises XenError(ESRCH)."""
        try:
            return self.domains[domid]
        except KeyError:
            raise XenError(Errno.ESRCH, f"no domain {domid}") from None

    def restore(
        self,
        config: DomainConfig,
        sink: Callable[[bytes], int],
        saved: SavedGuest,
        *,
        wall: bool = False,
    ) -> Guest:
        """Build a guest, not yet running, that goes on where a saved one stood still; with `wall` all the time since has passed for it.

        It has that one's domid, by which it knows its backends. Raises ConfigError, HostError.
        """
        from xenpy.domain.saved import Resume

        domid = saved.state.domain.domid
        if domid in self.domains:
            raise HostError(
                f"domain {domid} lives on this host; a guest that was saved as domain {domid} needs another host"
            )
        # A process of a device's own could not see what the guest's private copy of its RAM holds.
        options = DeviceOptions(isolated_disks=False, isolated_nets=False, disks=saved.disks)
        resume = Resume(saved.state.domain, saved.ram, wall)
        return self._make(
            config, sink, options, domid, lambda: restore_domain(self, domid, config, resume), saved.state
        )

    def create(self, config: DomainConfig, sink: Callable[[bytes], int], options: DeviceOptions | None = None) -> Guest:
        """Build a guest, not yet running; `sink` takes console output and returns how many bytes it took.

        Raises ConfigError, HostError.
        """
        domid = self._next_domid
        return self._make(config, sink, options or DeviceOptions(), domid, lambda: make_domain(self, domid, config))

    def _make(
        self, config: DomainConfig, sink: Callable[[bytes], int], options: DeviceOptions, domid: int,
        make: Callable[[], Domain], saved: GuestState | None = None,
    ) -> Guest:  # fmt: skip
        from xenpy.config.model import GuestType
        from xenpy.hypercalls import dispatch

        dispatch.load(pv=config.type is GuestType.PV)
        devices = Devices(self, domid, options)
        try:
            devices.open(config)
            domain = make()
        except BaseException:
            devices.close()
            raise
        self._next_domid = max(self._next_domid, domid + 1)
        self.domains[domid] = domain
        with self.lock:
            return Guest(self, domain, devices, sink, saved)

    # -- what backends ask for, see xenpy.devices.xenbus.Services -----------------------------------------------------

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Make a call in the loop's thread; from any thread."""
        self.loop.call_soon(callback)

    def map_page(self, domid: int, gref: int, *, readonly: bool = False) -> GrantMapping:
        """Map a page that a guest granted to us; under the lock. Raises GrantError, XenError(ESRCH)."""
        return self.domain(domid).gnttab.map_page(DOM0, gref, readonly=readonly)

    def read_pages(self, domid: int, gfns: Iterable[int]) -> bytes:
        """Return copies of pages of a guest's RAM; under the lock. Raises XenError: EFAULT, ESRCH."""
        memory = self.domain(domid).memory
        pages: list[bytes] = []
        for gfn in gfns:
            if not memory.is_ram(gfn):
                raise XenError(Errno.EFAULT, f"gfn {gfn:#x} is not the guest's RAM")
            pages.append(memory.read(gfn << PAGE_SHIFT, PAGE_SIZE))
        return b"".join(pages)

    def bind(self, domid: int, port: int, handler: Callable[[], None]) -> int:
        """Bind to a port that a guest left for us, and return ours; under the lock. Raises XenError."""
        ours = self.ports.bind_interdomain(domid, port)
        self.ports.set_handler(ours, handler)
        return ours

    def wire(self, port: int, wake: int, notify: int) -> None:
        """Let the kernel pass events between a port of ours and two eventfds, where it can; under the lock.

        The guest's count up `wake`, and what counts up `notify` is one to the guest. Where the kernel cannot, and whenever somebody wants
        to see each event, the port's handler and `notify` do the same.
        """
        peer = self.ports.peer(port)
        if peer is not None and peer.owner.domid in self.domains:
            kernel_events = self.domains[peer.owner.domid].kernel_events
            if kernel_events is not None:
                kernel_events.wire(peer, wake, notify)

    @cached_property
    def switches(self) -> Switches:
        """Return the switches between this host's guests; imported when a guest has an interface."""
        from xenpy.devices.vif.switch import Switches

        return Switches()

    def unbind(self, port: int) -> None:
        """Close a port of ours; under the lock."""
        self.ports.set_handler(port, None)
        self.ports.close(port)

    def notify(self, port: int) -> None:
        """Send one of our ports, unless the guest has closed its end."""
        with self.lock:
            try:
                self.ports.send(port)
            except XenError:
                return

    def ended(self, domain: Domain) -> None:
        """Pass on, in the loop's thread, that a domain has ended."""
        self.loop.call_soon(lambda: self.on_end(domain))

    def close(self) -> None:
        """Free what the host itself holds; its guests must be closed."""
        self.loop.close()
        self.kvm.close()
