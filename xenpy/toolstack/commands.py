"""What the process of a domain does when another process asks: the commands of the control socket. All in the loop's thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenpy.domain.ending import End
from xenpy.exitcodes import ExitCode
from xenpy.memory import PAGE_SHIFT
from xenpy.threads import thread_place
from xenpy.toolstack import debugkeys, plugging
from xenpy.toolstack.protocol import CommandError
from xenpy.toolstack.server import LATER, Later

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.toolstack.supervisor import Supervisor

_SHUTDOWNS: Final = ("poweroff", "reboot", "halt", "suspend")


class Commands:
    """The commands of one domain; `table` has them by name. Each raises CommandError, or what the domain raises."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.table: Mapping[str, Callable[..., Any]] = {
            "state": self.state,
            "config": self.config,
            "pause": self.pause,
            "unpause": self.unpause,
            "shutdown": self.shutdown,
            "wait": self.wait,
            "destroy": supervisor.destroy,
            "rename": self.rename,
            "set_vcpus": self.set_vcpus,
            "set_memory": self.set_memory,
            "sysrq": self.sysrq,
            "devices": self.devices,
            "attach": self.attach,
            "detach": self.detach,
            "block_resize": self.block_resize,
            "cd_insert": self.cd_insert,
            "debug_keys": self.debug_keys,
            "dump_core": self.dump_core,
            "save": self.save,
            "screenshot": self.screenshot,
            "vnc": self.vnc,
            "gdb": self.gdb,
        }

    @property
    def _domain(self) -> Domain:
        return self._supervisor.guest.domain

    def _alive(self) -> Domain:
        domain = self._domain
        if domain.ending is not None:
            raise CommandError(f"Domain {domain.domid} has ended ({domain.ending}) and is only preserved")
        return domain

    # -- what it is ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what `list`, `vcpu-list` and `top` show. Times are in ns, sizes in KiB."""
        domain, config = self._domain, self._supervisor.config
        with self._supervisor.guest.host.lock:
            vcpus = [_vcpu_state(vcpu) for vcpu in domain.vcpus]
            pages = domain.memory.ram_pages
        running = any(vcpu["state"] == "r" for vcpu in vcpus)
        blocked = bool(vcpus) and all(vcpu["state"] != "r" for vcpu in vcpus)
        paused = domain.paused and domain.ending is None
        ending = domain.ending
        flags = (
            "r" if running and not paused and ending is None else "-",
            "b" if blocked and not paused and ending is None else "-",
            "p" if paused else "-",
            "s" if ending is not None else "-",
            "c" if ending is not None and ending.kind in _CRASHES else "-",
            "-",
        )
        return {
            "state": "".join(flags),
            "cpu_ns": sum(vcpu["ns"] for vcpu in vcpus),
            "vcpus": vcpus,
            "memory_kib": pages << PAGE_SHIFT >> 10,
            "maxmem_kib": config.maxmem_mib << 10,
            "up_s": time.time() - self._supervisor.entry.record.started,
            "type": config.type.value,
        }

    def config(self) -> dict[str, Any]:
        """Return the domain's configuration in the shape of libxl's domain_config."""
        from xenpy.toolstack.document import document

        return document(self._supervisor.config)

    # -- life ---------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Stop the vCPUs."""
        self._alive().pause()

    def unpause(self) -> None:
        """Let the vCPUs run again."""
        self._alive().unpause()

    def shutdown(self, how: str) -> None:
        """Ask the guest to end."""
        self._alive()
        if how not in _SHUTDOWNS:
            raise CommandError(f"shutdown: {how!r} is none of {', '.join(_SHUTDOWNS)}")
        self._supervisor.guest.request_shutdown(how)

    def wait(self) -> Later | dict[str, Any]:
        """Answer when the domain has ended."""
        return LATER

    def rename(self, name: str) -> None:
        """Give the domain another name."""
        if not 0 < len(name) <= _MAX_NAME or "/" in name or not name.isprintable():
            raise CommandError(f"{name!r} is not 1 to {_MAX_NAME} printable characters without '/'", ExitCode.CONFIG)
        self._supervisor.rename(name)

    # -- what it has --------------------------------------------------------------------------------------------------

    def set_vcpus(self, count: int) -> None:
        """Ask the guest to have so many vCPUs online. Ref: xenstore-paths, ~/cpu"""
        domain = self._alive()
        if not 1 <= count <= len(domain.vcpus):
            raise CommandError(f"{count} is not a number of vCPUs from 1 to maxvcpus={len(domain.vcpus)}")
        with domain.host.lock:
            for vcpu_id in range(len(domain.vcpus)):
                path = f"/local/domain/{domain.domid}/cpu/{vcpu_id}/availability"
                domain.host.store.write(path, "online" if vcpu_id < count else "offline")

    def set_memory(self, kib: int) -> None:
        """Ask the guest's balloon driver for a size. Ref: xenstore-paths, memory/target"""
        domain = self._alive()
        most = self._supervisor.config.maxmem_mib << 10
        if not 0 < kib <= most:
            raise CommandError(f"memory target {kib} KiB is not from 1 to maxmem={most} KiB")
        with domain.host.lock:
            domain.host.store.write(f"/local/domain/{domain.domid}/memory/target", str(kib))

    def sysrq(self, key: str) -> None:
        """Send a magic SysRq key. Ref: xenstore-paths, control/sysrq"""
        domain = self._alive()
        if len(key) != 1 or not key.isascii() or not key.isprintable():
            raise CommandError(f"{key!r} is not one letter")
        with domain.host.lock:
            domain.host.store.write(f"/local/domain/{domain.domid}/control/sysrq", key)

    def devices(self, kind: str) -> list[dict[str, Any]]:
        """Return the devices of a kind as the lists of xl show them."""
        domain = self._domain
        with domain.host.lock:
            return plugging.rows(domain.host.store, domain.domid, kind)

    def attach(self, kind: str, spec: str, directory: str) -> int:
        """Add a device that a string of the configuration file describes, and return its number."""
        self._alive()
        supervisor = self._supervisor
        supervisor.config, devid = plugging.attach(supervisor.guest, supervisor.config, kind, spec, directory)
        return devid

    def detach(self, kind: str, device: str, *, force: bool) -> int:
        """Ask the guest to give up a device, or take it away; return its number."""
        self._alive()
        supervisor = self._supervisor
        supervisor.config, devid = plugging.detach(supervisor.guest, supervisor.config, kind, device, force=force)
        return devid

    def block_resize(self, device: str, size: int | None) -> int:
        """Have the guest see the size that a disk's image has by now, or is given before, and return it in bytes."""
        self._alive()
        return plugging.resize(self._supervisor.guest, device, size)

    def cd_insert(self, device: str, target: str, directory: str) -> None:
        """Put an image or block device into a CD drive, or take out what is in it if `target` is ""."""
        self._alive()
        supervisor = self._supervisor
        supervisor.config = plugging.insert(supervisor.guest, supervisor.config, device, target, directory)

    # -- looking into it ----------------------------------------------------------------------------------------------

    def debug_keys(self, keys: str) -> None:
        """Write what the keys ask for to the messages."""
        domain = self._domain
        for key in keys[:_MAX_KEYS]:
            with domain.host.lock:
                text = debugkeys.answer(domain, key)
            self._supervisor.say(text)

    def dump_core(self, path: str) -> None:
        """Write the domain's memory and vCPUs to a file, while it stands still."""
        from xenpy.toolstack.coredump import dump

        dump(self._domain, path)

    def save(self, path: str, after: str) -> None:
        """Save the domain into a new directory; it ends then, or goes on (`after` is "run"), or stays paused ("pause")."""
        from xenpy.toolstack.saving import save

        self._alive()
        try:
            save(self._supervisor.guest, self._supervisor.config, path, go_on=after == "run")
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from None
        if after not in ("run", "pause"):
            self._supervisor.destroy()

    def gdb(self, port: int, *, hold: bool = False) -> str:
        """Listen for a debugger at a TCP port, 0 for a free one, and return the address; `hold` stops the domain until one connects."""
        self._alive()
        return self._supervisor.guest.gdb(port, hold=hold)

    def screenshot(self, path: str) -> None:
        """Write what the domain shows on its framebuffer to a PNG file."""
        self._alive()
        try:
            Path(path).write_bytes(self._supervisor.guest.screenshot().png())
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from None

    def vnc(self) -> tuple[str, int]:
        """Return the address and TCP port where viewers of the first framebuffer connect."""
        self._alive()
        return self._supervisor.guest.vnc_address()


_CRASHES: Final = (End.CRASH, End.WATCHDOG, End.INTERNAL, End.UNSUPPORTED)
_MAX_NAME: Final = 255
_MAX_KEYS: Final = 64


def _vcpu_state(vcpu: Vcpu) -> dict[str, Any]:
    """Return a vCPU's line in `vcpu-list`; under the host's lock."""
    running, cpu = thread_place(vcpu.thread)
    try:
        used = vcpu.account.read()[2][0]
    except OSError:
        used = 0  # its thread has ended
    return {"online": vcpu.is_up, "state": "r" if running else "b", "cpu": cpu, "ns": used}
