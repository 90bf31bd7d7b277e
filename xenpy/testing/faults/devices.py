"""Faults of whole devices, of their requests, and of the guest's time."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Final

from xenpy import log
from xenpy.devices.trouble import Mishap, Trouble
from xenpy.errors import ConfigError, Errno, FrontendError, XenpyError
from xenpy.testing.faults.rules import Action
from xenpy.testing.trace.record import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.devices.registry import Devices
    from xenpy.devices.trouble import Ask
    from xenpy.devices.xenbus import Backend
    from xenpy.host import Guest
    from xenpy.testing.faults.rules import Rule
    from xenpy.testing.trace.record import Value

    Struck = Callable[[Kind, str, dict[str, Value]], "Rule | None"]

_NAMED: Final = re.compile(r"\w+/\d+", re.ASCII)
_MISHAPS: Final = {Action(mishap.value): mishap for mishap in Mishap}


def make_ask(name: str, struck: Struck) -> Ask:
    """Return what tells of a device's requests, such as read of vbd/51712, what goes wrong with them; `struck` is under the host's lock."""

    def ask(request: str) -> Trouble | None:
        rule = struck(Kind.REQUEST, f"{name}.{request}", {})
        if rule is None:
            return None
        return Trouble(_MISHAPS[rule.action], rule.delay_s, rule.error == Errno.EOPNOTSUPP)

    return ask


def find(devices: Devices, name: str) -> Backend:
    """Return a device by a name such as vif/0. Raises ConfigError."""
    kind, _, number = name.partition("/")
    backend = devices.find(kind, int(number))
    if backend is None:
        there = ", ".join(f"{kind}/{devid}" for kind, devid in devices.names()) or "none"
        raise ConfigError(f"--fault: the guest has no device {name}; it has {there}")
    return backend


def check(guest: Guest, rule: Rule) -> None:
    """Refuse a rule that this guest's devices cannot suffer. Raises ConfigError."""
    if rule.kind is Kind.CLOCK:
        return
    for name in rule.names:
        device = name.partition(".")[0]
        if rule.kind is Kind.REQUEST and not _NAMED.fullmatch(device):
            continue  # a pattern, or all
        backend = find(guest.devices, device)
        if rule.kind is Kind.REQUEST:
            _check_requests(rule, device, backend)
        if rule.action in (Action.DOWN, Action.UP) and not hasattr(backend, "set_carrier"):
            raise ConfigError(f"--fault {rule.text}: {name} has no cable; network interfaces have")


def _check_requests(rule: Rule, device: str, backend: Any) -> None:
    if not hasattr(backend, "trouble"):
        raise ConfigError(
            f"--fault {rule.text}: there are no faults of {device}'s requests, only of disks' and interfaces'"
        )
    if device.startswith("vif/") and rule.action is Action.ERROR:
        raise ConfigError(f"--fault {rule.text}: frames do not fail; drop loses them")
    if not backend.trouble(_nothing):
        raise ConfigError(
            f"--fault {rule.text}: a process of its own moves the frames of {device}; what `xenpy strace` starts with such a rule,"
            " or has isolated_nets=False or a switch behind it, has none"
        )
    backend.trouble(None)


def _nothing(_request: str) -> None:
    """Have nothing go wrong."""


def strike(guest: Guest, rule: Rule) -> None:
    """Do what a rule of the kinds TIMED says; what is not there any more is left alone. In the loop's thread."""
    if rule.kind is Kind.CLOCK:
        _jump(guest, rule.delay_s)
        return
    for name in rule.names:
        kind, _, number = name.partition("/")
        backend: Any = guest.devices.find(kind, int(number))
        if backend is None:
            continue
        match rule.action:
            case Action.KILL:
                if not backend.kill():
                    log.note(f"--fault {rule.text}: no process serves {name}")
            case Action.CLOSE:
                backend.fail(FrontendError("an injected fault"))
            case Action.UNPLUG:
                # Its threads may need the loop to end.
                threading.Thread(
                    target=guest.devices.unplug, args=(kind, int(number)), kwargs={"force": True}, daemon=True
                ).start()
            case Action.DOWN | Action.UP:
                backend.set_carrier(up=rule.action is Action.UP)


def _jump(guest: Guest, seconds: float) -> None:
    """Have the guest's time leap, in a thread: the vCPUs are stopped for it."""
    from xenpy.api.clock import Clock
    from xenpy.api.errors import Timeout
    from xenpy.api.processors import Processors
    from xenpy.api.progress import Progress

    progress = Progress(guest.domain.name, str, timeout_s=1)
    clock = Clock(guest.domain, Processors(guest.domain, progress))

    def jump() -> None:
        try:
            clock.jump(seconds)
        except (XenpyError, Timeout) as error:
            log.note(f"--fault clock: {error}")

    threading.Thread(target=jump, daemon=True).start()
