"""Asks the C compiler whether a claim about a header holds, many claims in one run."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

XEN_HEADERS = (
    "xen/xen.h", "xen/memory.h", "xen/event_channel.h", "xen/sched.h", "xen/vcpu.h", "xen/version.h", "xen/grant_table.h",
    "xen/physdev.h", "xen/callback.h", "xen/nmi.h", "xen/features.h", "xen/errno.h", "xen/elfnote.h", "xen/hvm/params.h",
    "xen/hvm/hvm_op.h", "xen/hvm/hvm_vcpu.h", "xen/arch-x86/hvm/start_info.h", "xen/io/xs_wire.h",
)  # fmt: skip
KVM_HEADERS = ("linux/ioctl.h", "linux/kvm.h", "asm/kvm_para.h")
_PRELUDE = (
    "#include <stdint.h>\n#include <stddef.h>\n#define __XEN_INTERFACE_VERSION__ 0x00041100\n#define __XEN_TOOLS__ 1\n"
)
_INCLUDE = Path("/usr/include")


@dataclass(frozen=True)
class Claim:
    """A constant C expression that ought to be true, and what it is about.

    With `unless_missing`, the claim is dropped when the headers do not define that macro.
    """

    subject: str
    expression: str
    unless_missing: str = ""

    def lines(self) -> list[str]:
        """Return the claim as one or more lines of C."""
        assertion = f'#line 1 "{self.subject}"\n_Static_assert({self.expression}, "{self.expression}");'
        if not self.unless_missing:
            return [assertion]
        return [f"#ifdef {self.unless_missing}", assertion, "#endif"]


def require(headers: Iterable[str]) -> None:
    """Skip the calling test when the compiler or a header is not installed."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    for header in headers:
        if not any((root / header).exists() for root in (_INCLUDE, _INCLUDE / "x86_64-linux-gnu")):
            pytest.skip(f"/usr/include/{header} is not installed (libxen-dev, linux-libc-dev)")


def refuted(headers: Iterable[str], claims: Iterable[Claim], *, bits: int = 64) -> dict[str, list[str]]:
    """Return what the compiler says of the claims that do not hold, or cannot be understood, by subject."""
    lines = [_PRELUDE, *(f"#include <{header}>" for header in headers)]
    for claim in claims:
        lines += claim.lines()
    # Headers of the other word size may be missing; the compiler's own and those of this size serve for both.
    command = [
        "gcc", f"-m{bits}", "-std=gnu11", "-ffreestanding", "-fsyntax-only", "-fmax-errors=0", "-isystem",
        "/usr/include/x86_64-linux-gnu", "-x", "c", "-",
    ]  # fmt: skip
    result = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60, check=False
    )
    errors: dict[str, list[str]] = {}
    for subject, message in re.findall(r"^([^:\n]*):[\d:]* (?:fatal )?error: (.*)", result.stderr, re.MULTILINE):
        errors.setdefault(subject, []).append(message)
    if result.returncode and not errors:
        pytest.fail(f"gcc failed: {result.stderr}")
    return errors
