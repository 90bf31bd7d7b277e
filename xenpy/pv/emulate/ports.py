"""The I/O ports that a PV domU without devices finds: a timer to calibrate by, two index registers, and nothing.

As in Xen only counter 2 of the timer, its control word and the speaker port are there; counter 0, whose interrupt no guest gets, is
not. Ports read as all ones where nothing is, and forget what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.pv.emulate.pit import ChannelState, Pit

if TYPE_CHECKING:
    from collections.abc import Callable

PIT_BASE: Final = 0x40
PIT_CHANNEL_2: Final = 0x42
PIT_CONTROL: Final = 0x43
SPEAKER: Final = 0x61
RTC_INDEX: Final = 0x70
PCI_CONFIG_ADDRESS: Final = 0xCF8
_NOTHING: Final = 0xFF
_MASK32: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class PortsState:
    """The ports as plain data."""

    channels: tuple[ChannelState, ...]
    speaker_data: int
    rtc_index: int
    pci_address: int


class Ports:
    """The ports of one domain; `now_ns` is its clock, in ns. It has no lock: the domain's serialises access.

    `pci_address` is where PCI's address register is kept, one 64-bit word, if somebody else works on it as well.
    """

    def __init__(self, now_ns: Callable[[], int], pci_address: memoryview[int] | None = None) -> None:
        self.pit = Pit(now_ns)
        self._rtc_index = 0
        self._pci = memoryview(bytearray(8)).cast("Q") if pci_address is None else pci_address

    def state(self) -> PortsState:
        """Return the ports as plain data."""
        return PortsState(*self.pit.state(), self._rtc_index, self._pci_address)

    @property
    def _pci_address(self) -> int:
        return self._pci[0] & _MASK32

    @_pci_address.setter
    def _pci_address(self, value: int) -> None:
        self._pci[0] = value

    def restore(self, state: PortsState) -> None:
        """Take over what `state` returned."""
        self.pit.restore((state.channels, state.speaker_data))
        self._rtc_index, self._pci_address = state.rtc_index, state.pci_address

    def read(self, port: int, size: int) -> int:
        """Return `size` (1, 2 or 4) bytes from `port` on."""
        if port == PCI_CONFIG_ADDRESS and size == 4:
            return self._pci_address
        return int.from_bytes(bytes(self._read_byte(port + offset) for offset in range(size)), "little")

    def write(self, port: int, size: int, value: int) -> None:
        """Write `size` (1, 2 or 4) bytes from `port` on."""
        if port == PCI_CONFIG_ADDRESS and size == 4:
            # What is behind the address is nobody's, but a guest that cannot read it back tries other ways of reaching PCI.
            self._pci_address = value
            return
        for offset, byte in enumerate(value.to_bytes(size, "little")):
            self._write_byte(port + offset, byte)

    def _read_byte(self, port: int) -> int:
        if port in (PIT_CHANNEL_2, PIT_CONTROL):
            return self.pit.read(port - PIT_BASE)
        if port == SPEAKER:
            return self.pit.read_speaker()
        return self._rtc_index if port == RTC_INDEX else _NOTHING

    def _write_byte(self, port: int, value: int) -> None:
        if port in (PIT_CHANNEL_2, PIT_CONTROL):
            self.pit.write(port - PIT_BASE, value)
        elif port == SPEAKER:
            self.pit.write_speaker(value)
        elif port == RTC_INDEX:
            self._rtc_index = value
