"""Injecting faults between a guest and its hypervisor, deterministically for a seed: `xenpy strace --fault`, and the same for Python."""

from xenpy.testing.faults.injector import Injector
from xenpy.testing.faults.rules import Rule, parse

__all__ = ["Injector", "Rule", "parse"]
