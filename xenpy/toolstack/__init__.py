"""A toolstack without a daemon: each domain's process listens on a socket of its own, and a registry of files says who lives.

`registry` and `client` are what a short command needs; `supervisor` is the other side, in the domain's process.
"""
