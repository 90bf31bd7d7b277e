"""Hypercall glue: copy in, call the state, copy out. It knows neither KVM nor devices."""
