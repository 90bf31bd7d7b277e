"""What a configuration may ask for and is not given yet: it is said to have no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.config.model import TscMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.config import DomainConfig


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
        "keymap": any(vfb.keymap for vfb in config.vfbs),
        "xenstore_feature_mask": config.xenstore_feature_mask is not None,
    }
    for key, given in unheeded.items():
        if given:
            yield f"{config.where(key)}: {key} has no effect yet"
