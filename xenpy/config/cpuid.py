"""cpuid=: what the guest's CPUID shows, in libxl's notation (features by name) or xend's (bits of registers).

Only the form is checked here; the CPUID code knows the features.

Ref: xl.cfg(5), cpuid
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenpy.config.grammar import Atom
from xenpy.config.text import fail, parse_integer, quote

if TYPE_CHECKING:
    from xenpy.config.grammar import Position, Setting
    from xenpy.errors import ConfigError

_POLICIES = frozenset("01xks")  # force on, force off, default, host's, old name for host's
_MAXIMA = ("maxleaf", "maxhvleaf")
_IDENTITY = ("family", "model", "stepping", "brandid", "clflush")
_TOPOLOGY = ("apicidsize", "localapicid", "nc", "proccount", "procpkg")
_VALUED = frozenset((*_MAXIMA, *_IDENTITY, *_TOPOLOGY))
_REGISTERS = ("eax", "ebx", "ecx", "edx")
_REGISTER_BITS = 32
_MAX_LEAF = 0xFFFF_FFFF


class CpuidFeature(NamedTuple):
    """`name=value`: a policy letter for a feature, a number for one of the fields that have values."""

    name: str
    value: str
    position: Position


class CpuidRegister(NamedTuple):
    """One register of a leaf; `bits` has a policy letter for each bit, the most significant first."""

    leaf: int
    subleaf: int | None
    register: str
    bits: str
    position: Position


CpuidRule = CpuidFeature | CpuidRegister


def parse_cpuid(setting: Setting) -> tuple[CpuidRule, ...]:
    """Return the rules of cpuid= in their order; a later rule overrides an earlier one."""
    if isinstance(setting.value, Atom):
        return tuple(_features(setting.value))
    rules: list[CpuidRule] = []
    for item in setting.value.items:
        if not isinstance(item, Atom):
            raise fail(item.position, "key 'cpuid': an entry is a string such as \"1:ecx=...\", not a list")
        rules += _registers(item)
    return tuple(rules)


def _fail(atom: Atom, message: str) -> ConfigError:
    return fail(atom.position, f"key 'cpuid': {message}")


def _features(atom: Atom) -> list[CpuidFeature]:
    first, *words = (word.strip() for word in atom.text.split(","))
    if first != "host":
        raise _fail(atom, f'{quote(atom.text)} does not begin with "host"')
    features = []
    for word in words:
        name, _, value = word.partition("=")
        number = parse_integer(value)
        valued = name in _VALUED and (value in ("x", "k", "s") or (number is not None and number >= 0))
        if not valued and (not name or value not in _POLICIES):
            raise _fail(atom, f"{quote(word)} is not name=value with a value of 0, 1, x, k or s")
        features.append(CpuidFeature(name, value, atom.position))
    return features


def _registers(atom: Atom) -> list[CpuidRegister]:
    leaves, colon, registers = atom.text.partition(":")
    leaf_text, comma, subleaf_text = leaves.partition(",")
    leaf = parse_integer(leaf_text)
    subleaf = parse_integer(subleaf_text) if comma else None
    bad_subleaf = comma and (subleaf is None or not 0 <= subleaf <= _MAX_LEAF)
    if not colon or leaf is None or not 0 <= leaf <= _MAX_LEAF or bad_subleaf:
        raise _fail(atom, f'{quote(atom.text)} does not begin with a leaf, as in "1:ecx=..." or "7,0:ebx=..."')
    rules = []
    for word in registers.split(","):
        register, _, bits = (part.strip() for part in word.partition("="))
        if register not in _REGISTERS or len(bits) != _REGISTER_BITS or not _POLICIES.issuperset(bits):
            what = f"{_REGISTER_BITS} characters of 0, 1, x, k and s"
            raise _fail(atom, f"{quote(word)} is not a register of {', '.join(_REGISTERS)} with {what}")
        rules.append(CpuidRegister(leaf, subleaf, register, bits, atom.position))
    return rules
