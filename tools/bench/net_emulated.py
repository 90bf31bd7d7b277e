"""PVH guests' network against that of HVM guests of QEMU's with its Xen network device, on the emulated host, in one run.

Kernel, netfront, program and host's end are the same for both: to the host it is a passt on a stream socket, whose one end is our vif's or
`-netdev stream`. Between guests it is our switch, and a stream socket from one QEMU to the other.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from load import KERNEL, PROGRAM, Result, alternate, compile_load, row, serving
from net import LOADS
from newer_qemu import find_qemu
from watch import BenchError, xenpy_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from report import Row

_PORT: Final = 5201
_GATEWAY: Final = "10.0.2.2"
_GUEST: Final = "10.0.2.15"
_CLIENT, _SERVER = "192.168.77.1", "192.168.77.2"
_MACS: Final = {"host": "00:16:3e:00:00:01", "client": "00:16:3e:00:00:02", "server": "00:16:3e:00:00:03"}
_LARGE_MTU, _SMALL_MTU = 65520, 1500
_MEMORY_MIB: Final = 192
_DURATION_MS: Final = 5000
"""Longer than elsewhere: it takes a while here until TCP has found its windows."""
_MARK: Final = "XENPY-BENCH"
_GUEST_TIMEOUT_S: Final = 300.0
_HOST_TIMEOUT_S: Final = 1800.0
_HOST_MEMORY_MIB: Final = 3072
_SOCKET_S: Final = 30.0
_LOOK_S: Final = 0.1
_SWITCH: Final = "bench-switch"
_ROLES: Final = {"ours": "hvc0", "theirs": "ttyS0"}
"""Whose guest it is, and the console it is given."""
_STEPS: Final = (
    *((f"host: {name}", unit, what, size, _LARGE_MTU) for name, unit, what, size in LOADS),
    *((f"host: {name}, MTU 1500", unit, what, size, _SMALL_MTU) for name, unit, what, size in LOADS[:2]),
)
_PAIR_STEPS: Final = tuple((f"guest: {name}", unit, what, size, _SMALL_MTU) for name, unit, what, size in LOADS)


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement, medians of `runs` boots each, taken alternately."""
    from xenpy.emulated import EmulatedHost
    from xenpy.guests import provide

    qemu = find_qemu()
    if not qemu.has_xen:
        raise BenchError(f"{qemu.words} has no Xen network, and Debian's backports cannot be had")
    program, images = compile_load(directory), provide(KERNEL)
    plan: dict[str, Any] = {
        "directory": str(directory),
        "program": str(program),
        "kernel": str(images.kernel),
        "qemu": [*qemu.command, "-accel", qemu.accel],
        "ramdisks": {role: _ramdisks(program, console) for role, console in _ROLES.items()},
    }
    tables: list[dict[str, list[Result]]] = []
    with EmulatedHost(writable=[directory], memory=_HOST_MEMORY_MIB) as host:
        for _ in range(runs):
            done = host.run([sys.executable, str(Path(__file__)), json.dumps(plan)], timeout=_HOST_TIMEOUT_S)
            if done.returncode:
                raise BenchError(f"in the emulated host: {done.stderr.decode(errors='replace')[-3000:]}")
            tables.append({key: [Result(*it) for it in found] for key, found in json.loads(done.stdout).items()})
    rows = []
    for kind, steps in (("host", _STEPS), ("pair", _PAIR_STEPS)):
        for index, (name, unit, *_) in enumerate(steps):
            first, second = (iter([table[f"{role} {kind}"][index] for table in tables]) for role in _ROLES)
            middle = alternate(runs, first.__next__, second.__next__)
            rows.append(row("net", name, {"k/s": "/s"}.get(unit, unit), *middle, qemu.words))
    return rows


def _ramdisks(program: Path, console: str) -> dict[str, str]:
    """Make the root filesystems of the guest that talks to the host, and of the two that talk to each other."""
    from xenpy.guests import provide
    from xenpy.initramfs import make_initramfs

    wait = f"until /{PROGRAM} tcp-echo {_SERVER} {_PORT} 64 1 >/dev/null 2>&1; do usleep 300000; done"
    scripts = {
        "host": [_address(_GUEST), *_loads(_GATEWAY, _STEPS)],
        "client": [_address(_CLIENT), wait, *_loads(_SERVER, _PAIR_STEPS)],
        "server": [_address(_SERVER), f"/{PROGRAM} serve {_PORT}"],
    }
    images = provide(KERNEL)
    return {
        name: str(
            make_initramfs(
                command="\n".join(script), ending="poweroff", images=images, modules=["xen-netfront"],
                files={PROGRAM: program}, console=console,
            )
        )
        for name, script in scripts.items()
    }  # fmt: skip


def _address(address: str) -> str:
    wait = "while [ ! -e /sys/class/net/eth0 ]; do usleep 100000; done"
    return f"{wait}\nip link set lo up; ip addr add {address}/24 dev eth0; ip link set eth0 up"


def _loads(there: str, steps: Sequence[tuple[str, str, str, int, int]]) -> Iterator[str]:
    """Yield the lines that run every load and print its result after a mark; the MTU is what is wished for, or the most there is."""
    for _, _, what, size, mtu in steps:
        yield f"ip link set eth0 mtu {mtu} 2>/dev/null || ip link set eth0 mtu {_SMALL_MTU}"
        load = f"/{PROGRAM} {what} {there} {_PORT} {size} {_DURATION_MS}"
        # passt resets a connection whose guest was kept from running for seconds, as a busy machine does.
        yield f"for i in 1 2 3; do result=$({load}) && break; done; echo {_MARK} $result"


# -- inside the emulated host -----------------------------------------------------------------------------------------


class _Inside:
    """Runs the guests, on the machine that this is."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._directory = Path("/tmp")  # the emulated host's own, in memory

    def run(self) -> dict[str, list[list[int]]]:
        """Return what each pair of guests measured."""
        with serving(Path(self._plan["program"]), _PORT):
            hosts = {
                "ours host": self._results(self._ours("host", "vif = ['mac=%s']"), len(_STEPS)),
                "theirs host": self._their_host(),
            }
        return hosts | {"ours pair": self._our_pair(), "theirs pair": self._their_pair()}

    def _ours(self, name: str, vif: str) -> list[str]:
        config = self._directory / f"{name}.cfg"
        config.write_text(
            f'name = "{name}"\ntype = "pvh"\nkernel = "{self._plan["kernel"]}"\n'
            f'ramdisk = "{self._plan["ramdisks"]["ours"][name]}"\nmemory = {_MEMORY_MIB}\nvcpus = 1\n'
            f'cmdline = "console=hvc0 quiet panic=1"\n{vif % _MACS[name]}\n',
            encoding="utf-8",
        )
        return xenpy_command("run", str(config))

    def _theirs(self, name: str, netdev: str) -> list[str]:
        plan = self._plan
        return [
            *plan["qemu"], "-cpu", "host", "-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-serial", "stdio", "-kernel", plan["kernel"], "-initrd", plan["ramdisks"]["theirs"][name],
            "-append", "console=ttyS0 quiet panic=1", "-netdev", f"stream,id=net,{netdev}",
            "-device", f"xen-net-device,netdev=net,mac={_MACS[name]}",
        ]  # fmt: skip

    def _results(self, command: Sequence[str], count: int) -> list[list[int]]:
        """Run one guest to its end and return what it printed, in the order of the loads. Raises BenchError."""
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_GUEST_TIMEOUT_S
        )
        text = (done.stdout + done.stderr).decode(errors="replace")
        found = re.findall(rf"{_MARK} (\d+) (\d+) (\d+)", text)
        if done.returncode or len(found) != count:
            raise BenchError(f"{command[0]} ended with {done.returncode} and {len(found)} results:\n{text[-2000:]}")
        return [[int(field) for field in fields] for fields in found]

    def _their_host(self) -> list[list[int]]:
        from ipaddress import IPv4Address, IPv4Interface

        from xenpy.devices.vif.usernet import UserNet

        path = self._directory / "passt.socket"
        network = UserNet(IPv4Interface(f"{_GUEST}/24"), IPv4Address(_GATEWAY))
        passt = ["passt", "--foreground", "--quiet", f"--socket={path}", *network.arguments(None, ())]
        with _meanwhile(passt):
            _wait_for(path)
            return self._results(self._theirs("host", f"server=off,addr.type=unix,addr.path={path}"), len(_STEPS))

    def _our_pair(self) -> list[list[int]]:
        import xenpy

        vif = f"vif = ['mac=%s,bridge={_SWITCH}']"
        *_, first = self._ours("client", vif)
        *_, second = self._ours("server", vif)
        with (
            xenpy.Host() as host,
            xenpy.Guest.from_cfg(second, host=host, timeout=_GUEST_TIMEOUT_S),
            xenpy.Guest.from_cfg(first, host=host, timeout=_GUEST_TIMEOUT_S) as client,
        ):
            ending = client.wait()
            text = client.console.text
        found = re.findall(rf"{_MARK} (\d+) (\d+) (\d+)", text)
        if len(found) != len(_PAIR_STEPS):
            raise BenchError(f"our guest ended with {ending} and {len(found)} results:\n{text[-2000:]}")
        return [[int(field) for field in fields] for fields in found]

    def _their_pair(self) -> list[list[int]]:
        path = self._directory / "pair.socket"
        address = f"addr.type=unix,addr.path={path}"
        with _meanwhile(self._theirs("server", f"server=on,{address}")):
            _wait_for(path)
            return self._results(self._theirs("client", f"server=off,{address}"), len(_PAIR_STEPS))


@contextmanager
def _meanwhile(command: Sequence[str]) -> Iterator[None]:
    """Run a program until the end of the block."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield


def _wait_for(path: Path) -> None:
    """Wait for a socket. Raises BenchError."""
    deadline = time.monotonic() + _SOCKET_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise BenchError(f"{path} does not come")
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(_Inside(json.loads(sys.argv[1])).run()))
    except BenchError as error:
        sys.exit(str(error))
