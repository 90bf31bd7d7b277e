"""Tracing what a guest asks of its hypervisor: `xenpy strace` and `xenpy abi`, and the same for Python.

A `Tracer` listens to a domain and hands `Record`s to sinks: text, JSON lines, a summary, a Chrome trace, a picture, or a list.
"""

from xenpy.testing.trace.filters import Filter
from xenpy.testing.trace.record import Kind, Record, Sink
from xenpy.testing.trace.recorder import Recorder, trace
from xenpy.testing.trace.tracer import Tracer

__all__ = ["Filter", "Kind", "Record", "Recorder", "Sink", "Tracer", "trace"]
