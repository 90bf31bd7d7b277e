"""What a configuration may ask for and a domain cannot give yet: refused by name, or said to have no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.config.model import TscMode
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.config import DomainConfig

NO_BACKEND: Final = {
    "vfb": "vfbs",
    "vkb": "vkbs",
}
"""Keys of devices that have no backend yet, and the configuration's fields that hold them."""


def check(config: DomainConfig) -> None:
    """Raise ConfigError if the configuration asks for what cannot be had."""
    for key, field in NO_BACKEND.items():
        if getattr(config, field):
            raise ConfigError(f"{config.where(key)}: {key}: there is no backend for it yet; leave it out")


def without_effect(config: DomainConfig) -> Iterator[str]:
    """Yield a sentence for each setting that is accepted and not followed."""
    unheeded = {
        "cpus": bool(config.cpus),
        "cpuid": bool(config.cpuid),
        "tsc_mode": config.tsc_mode is not TscMode.DEFAULT,
        "localtime": config.localtime,
        "rtc_timeoffset": bool(config.rtc_timeoffset),
        "msr_relaxed": config.msr_relaxed,
        "nomigrate": config.nomigrate,
        "xenstore_quota": bool(config.xenstore_quota),
        "xenstore_feature_mask": config.xenstore_feature_mask is not None,
    }
    for key, given in unheeded.items():
        if given:
            yield f"{config.where(key)}: {key} has no effect yet"
