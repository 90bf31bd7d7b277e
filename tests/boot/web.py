"""What busybox' httpd serves to a guest: a file to fetch, and a program that tells the checksum of what is sent to it."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SUM = """#!/bin/sh
echo
head -c "$CONTENT_LENGTH" | base64 -d | sha256sum | cut -d ' ' -f 1
"""


def upload(server: str) -> str:
    """Return the lines of a guest's script that send /tmp/file to a server (address:port) and say what it made of it."""
    return (
        "base64 </tmp/file >/tmp/text  # wget posts no zero bytes\n"
        f'echo "upload $(wget -q -O - --post-file /tmp/text http://{server}/cgi-bin/sum)"'
    )


def lay_out(directory: Path, size: int) -> str:
    """Fill a directory for the server, with a file of so many bytes; return the file's checksum."""
    content = os.urandom(size)
    (directory / "file").write_bytes(content)
    (directory / "cgi-bin").mkdir()
    (directory / "cgi-bin" / "sum").write_text(_SUM)
    (directory / "cgi-bin" / "sum").chmod(0o755)
    return hashlib.sha256(content).hexdigest()
