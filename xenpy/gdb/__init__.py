"""A debugger's way into a guest: GDB's remote serial protocol.

`packets` and `session` are the protocol, without I/O; `registers` says what registers there are; `target` is a guest as a debugger sees it;
`server` listens. Stopping and stepping a domain is xenpy.domain.debugging.

Ref: GDB manual, appendix E, "GDB Remote Serial Protocol"
"""
