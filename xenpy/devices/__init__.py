"""Backends: what stands at the other end of a guest's PV drivers."""
