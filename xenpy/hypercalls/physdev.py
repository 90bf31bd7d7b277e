"""physdev_op: real interrupts and ports, of which a domU without devices has none.

Ref: xen/include/public/physdev.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi.op import Op
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

PHYSDEVOP_irq_status_query: Final = Op(5, "irq_status_query", "physdev_irq_status_query", out=True)
PHYSDEVOP_set_iopl: Final = Op(6, "set_iopl", "physdev_set_iopl")
PHYSDEVOP_set_iobitmap: Final = Op(7, "set_iobitmap", "physdev_set_iobitmap")
PHYSDEVOP_apic_read: Final = Op(8, "apic_read", "physdev_apic", out=True)
PHYSDEVOP_apic_write: Final = Op(9, "apic_write", "physdev_apic")
PHYSDEVOP_eoi: Final = Op(12, "eoi", "physdev_eoi")
PHYSDEVOP_map_pirq: Final = Op(13, "map_pirq")
PHYSDEVOP_unmap_pirq: Final = Op(14, "unmap_pirq", "physdev_unmap_pirq")
PHYSDEVOP_pirq_eoi_gmfn_v1: Final = Op(17, "pirq_eoi_gmfn_v1", "physdev_pirq_eoi_gmfn")
PHYSDEVOP_get_free_pirq: Final = Op(23, "get_free_pirq", "physdev_get_free_pirq", out=True)
PHYSDEVOP_pirq_eoi_gmfn_v2: Final = Op(28, "pirq_eoi_gmfn_v2", "physdev_pirq_eoi_gmfn")

IOPL_MAX: Final = 3
IOBITMAP_MAX_PORTS: Final = 65536

_OPS: Final = (
    PHYSDEVOP_irq_status_query, PHYSDEVOP_apic_read, PHYSDEVOP_apic_write, PHYSDEVOP_eoi, PHYSDEVOP_map_pirq,
    PHYSDEVOP_unmap_pirq, PHYSDEVOP_pirq_eoi_gmfn_v1, PHYSDEVOP_get_free_pirq, PHYSDEVOP_pirq_eoi_gmfn_v2,
)  # fmt: skip


class _PhysdevOp(Hypercall):
    """An HVM guest without pirqs is told that the whole hypercall does not exist."""

    def __call__(self, call: Call) -> int | None:
        return super().__call__(call) if call.domain.is_pv else -Errno.ENOSYS


physdev_op = _PhysdevOp(33, "physdev_op")


def _refuse(_call: Call, _op: Any = None) -> None:
    raise XenError(Errno.EPERM, "the domain has no physical interrupts")


for _op in _OPS:
    physdev_op.handles(_op)(_refuse)


@physdev_op.handles(PHYSDEVOP_set_iopl)
def set_iopl(call: Call, op: Any) -> None:
    """Set the calling vCPU's virtual IOPL."""
    if op.iopl > IOPL_MAX:
        raise XenError(Errno.EINVAL, f"IOPL {op.iopl}")
    call.vcpu.iopl = op.iopl


@physdev_op.handles(PHYSDEVOP_set_iobitmap)
def set_iobitmap(call: Call, op: Any) -> None:
    """Set which ports the calling vCPU may reach whatever its virtual IOPL: those whose bit is 0. The guest keeps the bitmap."""
    if op.nr_ports > IOBITMAP_MAX_PORTS:
        raise XenError(Errno.EINVAL, f"{op.nr_ports} ports")
    call.vcpu.io_bitmap = op.bitmap, op.nr_ports
