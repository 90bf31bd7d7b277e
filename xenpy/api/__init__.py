"""The Python API: guests as objects, for tests and scripts. `xenpy` itself exports what is public, see docs/testing.md.

A host's loop runs in a thread of its own and every call here is synchronous; calls may come from any thread.
"""
