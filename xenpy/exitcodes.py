"""How the commands end. `docs/cli.md` repeats this table, and a test keeps the two alike."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of `xenpy run` and of the commands that watch a domain to its end."""

    POWEROFF = 0
    """The guest powered off, or a command succeeded."""
    FAILURE = 1
    """Something else went wrong; the message says what."""
    CONFIG = 2
    """The configuration, an override, an option, the kernel or the ramdisk is wrong."""
    HOST = 3
    """This host cannot run the guest: no KVM, no permission, or KVM met an instruction it cannot emulate."""
    CRASH = 4
    """The guest crashed."""
    TIMEOUT = 5
    """--timeout ran out."""
    REBOOT_LOOP = 6
    """The guest rebooted over and over in a short time."""
    WATCHDOG = 7
    """A watchdog of the guest's expired."""
    SUSPEND = 8
    """The guest suspended itself and nobody was there to resume it."""
    REBOOT = 9
    """The guest rebooted and on_reboot says not to start it again."""
    INTERRUPTED = 130
    """Ctrl-C or SIGTERM ended it, as a shell reports it."""
