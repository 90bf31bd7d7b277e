"""The tables of xl, column by column, so that scripts that read them find what they look for.

Ref: xl(1); compared with what xl of Xen 4.17 prints
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NS: Final = 1e9
_KIB_PER_MIB: Final = 1 << 10
_DAY_S, _HOUR_S, _MINUTE_S = 86400, 3600, 60


@dataclass(frozen=True, slots=True)
class Row:
    """A domain in the tables; `state` as xl has it, times in seconds, sizes in KiB. `vcpus` are those of `Commands.state`."""

    domid: int
    name: str
    state: str = "------"
    cpu_s: float = 0.0
    up_s: float = 0.0
    memory_kib: int = 0
    maxmem_kib: int = 0
    vcpus: list[dict[str, Any]] = field(default_factory=list)

    @property
    def online(self) -> int:
        """Return how many vCPUs are online."""
        return sum(bool(vcpu["online"]) for vcpu in self.vcpus)


def row(domid: int, name: str, state: dict[str, Any] | None) -> Row:
    """Return a domain's row, from what its process has said; one that says nothing has a row of nothing."""
    if state is None:
        return Row(domid, name)
    return Row(
        domid, name, state["state"], state["cpu_ns"] / _NS, state["up_s"], state["memory_kib"], state["maxmem_kib"],
        state["vcpus"],
    )  # fmt: skip


def host_row() -> Row:
    """Return the row of Domain-0, which is this host."""
    processors = os.sysconf("SC_NPROCESSORS_ONLN")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 10
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    # user, nice, system, idle, iowait, irq, softirq. Ref: proc(5)
    ticks = sum(int(fields[index]) for index in (1, 2, 3, 6, 7))
    used = ticks / os.sysconf("SC_CLK_TCK")
    up = float(Path("/proc/uptime").read_text().split()[0])
    vcpu = {"online": True, "state": "r", "ns": used / processors * _NS}
    vcpus = [{**vcpu, "cpu": cpu} for cpu in range(processors)]
    return Row(0, "Domain-0", "r-----", used, up, memory, memory, vcpus)


def list_table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of `xl list`."""
    yield "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    for each in rows:
        mib = each.memory_kib // _KIB_PER_MIB
        yield f"{each.name:<40} {each.domid:5} {mib:5} {each.online:5}     {each.state}  {each.cpu_s:8.1f}"


def vcpu_table(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of `xl vcpu-list`."""
    yield "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)"
    for each in rows:
        for number, vcpu in enumerate(each.vcpus):
            running = "r" if vcpu["state"] == "r" else "-"
            blocked = "b" if vcpu["state"] == "b" else "-"
            place = f"{vcpu['cpu']:5} {running:>3}{blocked}-" if vcpu["online"] else f"    -   {'-'}{'-'}p"
            yield f"{each.name:<32} {each.domid:5} {number:5}{place} {vcpu['ns'] / _NS:9.1f}  all / all"


def uptime_table(rows: Iterable[Row], *, short: bool = False) -> Iterator[str]:
    """Yield the lines of `xl uptime`, or of `xl uptime -s`."""
    if not short:
        yield f"{'Name':<33} {'ID':>4} Uptime"
    for each in rows:
        if short:
            yield f" {time.strftime('%H:%M:%S')} up {_span(each.up_s)},  {each.name} ({each.domid})"
        else:
            yield f"{each.name:<33} {each.domid:4} {_span(each.up_s)}"


def _span(seconds: float) -> str:
    days, rest = divmod(int(seconds), _DAY_S)
    hours, rest = divmod(rest, _HOUR_S)
    minutes, rest = divmod(rest, _MINUTE_S)
    clock = f"{hours:2}:{minutes:02}:{rest:02}"
    return f"{days} day{'s' if days > 1 else ''}, {clock}" if days else clock


def block_table(devices: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of `xl block-list`."""
    yield f"{'Vdev':<5} {'BE':<3} {'handle':<6} {'state':<5} {'evt-ch':<6} {'ring-ref':<8} {'BE-path':<30}"
    for each in devices:
        yield (
            f"{each['devid']:<5} {0:<3} {each['domid']:<6} {each['state']:<5} {each['evtch']:<6} {each['ring']:<8} "
            f"{each['backend']:<30}"
        )


def network_table(devices: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of `xl network-list`."""
    yield (
        f"{'Idx':<3} {'BE':<2} {'Mac Addr.':<17} {'handle':<6} {'state':<5} {'evt-ch':<6} {'tx-':>5}/{'rx-ring-ref':<5} "
        f"{'BE-path':<30}"
    )
    for each in devices:
        yield (
            f"{each['devid']:<3} {0:<2} {each['mac'] or '':<17}{each['devid']:6} {each['state']:5} {each['evtch']:6} "
            f"{each['tx']:5}/{each['rx']:<11} {each['backend']:<30}"
        )


def top_table(rows: Iterable[Row], before: dict[int, float], seconds: float) -> Iterator[str]:
    """Yield the lines of `xl top`; `before` has the processor time by domid, `seconds` ago."""
    every = list(rows)
    total = next((each.memory_kib for each in every if each.domid == 0), 0) or 1
    yield (f"{'NAME':>20}  STATE   CPU(sec) CPU(%)     MEM(k) MEM(%)  MAXMEM(k) MAXMEM(%) VCPUS")
    for each in every:
        share = 100 * (each.cpu_s - before.get(each.domid, each.cpu_s)) / seconds if seconds > 0 else 0.0
        memory, maximum = (100 * kib / total for kib in (each.memory_kib, each.maxmem_kib))
        yield (
            f"{each.name[:20]:>20} {each.state} {each.cpu_s:10.0f} {share:6.1f} {each.memory_kib:10} {memory:6.1f} "
            f"{each.maxmem_kib:10} {maximum:9.1f} {each.online:5}"
        )
