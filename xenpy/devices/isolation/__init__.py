"""Backends in processes of their own, which may die at any moment and are started again.

`keeper` is our side: it starts the process, answers for it what only the VMM can (grants, events), notices its death and starts the next.
`child` is the process, `template` and `process` where it comes from, `channel` what the two say to each other, `grants` and `memory` the
two ends of granted pages.

A device's process gets the guest's RAM, descriptors of its medium, and for each queue: an event in either direction, a socket on which it
asks for grants by reference, and memory that outlives it. It gets no xenstore, no other event channels, no path and no other file.
"""
