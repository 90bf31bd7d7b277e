"""VNC's check of a password: a viewer encrypts with it what it is sent.

Ref: RFC 6143, 7.2.2
"""

from __future__ import annotations

import hmac
from importlib import import_module
from typing import Any, Final

from xenpy.devices.vnc.protocol import MAX_PASSWORD
from xenpy.errors import ConfigError

_BITS: Final = 8


def load_cipher() -> Any:
    """Return the module of DES, of which Python's library has none. Raises ConfigError."""
    try:
        return import_module("Crypto.Cipher.DES")
    except ImportError:
        raise ConfigError("vncpasswd= needs DES, which pycryptodome has: pip install 'xenpy[vnc]'") from None


def response(password: str, challenge: bytes) -> bytes:
    """Return what a viewer that knows the password answers; only its first 8 bytes count. Raises ConfigError."""
    des = load_cipher()
    key = password.encode()[:MAX_PASSWORD].ljust(MAX_PASSWORD, b"\0")
    # The key's bytes begin with the lowest bit, unlike everybody else's.
    mirrored = bytes(int(f"{byte:0{_BITS}b}"[::-1], 2) for byte in key)
    encrypted: bytes = des.new(mirrored, des.MODE_ECB).encrypt(challenge)
    return encrypted


def is_right(password: str, challenge: bytes, answer: bytes) -> bool:
    """Tell whether a viewer knows the password."""
    return hmac.compare_digest(response(password, challenge), answer)
