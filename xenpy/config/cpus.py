"""cpus=: which host CPUs each vCPU may run on.

Ref: xl.cfg(5), CPU Allocation
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenpy.config.grammar import ListValue
from xenpy.config.text import fail, parse_integer, quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.config.grammar import Atom, Setting

_MAX_CPU = 4095  # beyond the largest NR_CPUS that distributions build, and a bound for ranges


class CpuTerm(NamedTuple):
    """The CPUs or NUMA nodes `first` to `last`, added to a CPULIST or taken away; `last` of None is all CPUs."""

    exclude: bool
    nodes: bool
    first: int
    last: int | None


class CpuList(NamedTuple):
    """A CPULIST such as `0-3,5,^1` or `all,^node:1`."""

    terms: tuple[CpuTerm, ...]

    def resolve(self, online: frozenset[int], nodes: Mapping[int, frozenset[int]]) -> frozenset[int]:
        """Return the CPUs of `online` that are meant; `nodes` has each NUMA node's CPUs.

        The terms count in their order; a list that begins with an exclusion takes away from all.
        """
        chosen = online if self.terms[0].exclude else frozenset[int]()
        for term in self.terms:
            cpus = online if term.last is None else frozenset(range(term.first, term.last + 1))
            if term.nodes:
                cpus = frozenset().union(*(nodes.get(node, frozenset()) for node in cpus))
            chosen = chosen - cpus if term.exclude else chosen | (cpus & online)
        return chosen


def parse_cpus(setting: Setting, maxvcpus: int) -> tuple[CpuList | None, ...]:
    """Return one entry for each vCPU, None for one that may run anywhere."""
    if not isinstance(setting.value, ListValue):
        return (_parse_list(setting.value),) * maxvcpus
    entries = setting.value.items
    if len(entries) > maxvcpus:
        raise fail(setting.position, f"key 'cpus': {len(entries)} entries for {maxvcpus} vCPUs")
    lists: list[CpuList | None] = []
    for entry in entries:
        if isinstance(entry, ListValue):
            raise fail(entry.position, "key 'cpus': an entry is a string such as \"0-3,^1\", not a list")
        lists.append(_parse_list(entry))
    return (*lists, *(None for _ in range(maxvcpus - len(lists))))


def _parse_list(atom: Atom) -> CpuList | None:
    """Parse one CPULIST; None when it means every CPU."""
    words = [word.strip() for word in atom.text.split(",")]
    if words in ([""], ["all"]):
        return None
    return CpuList(tuple(_parse_term(word, atom) for word in words))


def _parse_term(word: str, atom: Atom) -> CpuTerm:
    exclude = word.startswith("^")
    rest = word.removeprefix("^")
    if rest == "all" and not exclude:
        return CpuTerm(exclude, nodes=False, first=0, last=None)
    numbers = rest.removeprefix("nodes:").removeprefix("node:")
    first_text, dash, last_text = numbers.partition("-")
    first = parse_integer(first_text)
    last = parse_integer(last_text.removeprefix("^")) if dash else first
    if first is None or last is None or not 0 <= first <= last <= _MAX_CPU:
        right = "0-3,5,^1 or all,^node:1"
        raise fail(atom.position, f"key 'cpus': {quote(word)} is no CPU, range or node, as in {right}")
    return CpuTerm(exclude, numbers != rest, first, last)
