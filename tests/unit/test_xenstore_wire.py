"""Xenstore messages as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XSD_ERRORS, MsgType
from xenpy.errors import Errno
from xenpy.pv.xenstore.wire import Message, MessageReader, ProtocolError, error_payload, split_strings

UINT32 = st.integers(0, 0xFFFFFFFF)
MESSAGES = st.builds(Message, UINT32, UINT32, UINT32, st.binary(max_size=64))


def _drain(reader: MessageReader) -> list[Message]:
    return list(iter(reader.next, None))


@given(st.lists(MESSAGES, max_size=6), st.data())
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    messages: list[Message], data: st.DataObject
) -> None:
    stream = b"".join(message.encode() for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, found = MessageReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        found += _drain(reader)
    assert found == messages
    assert reader.buffered == 0


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_messages_or_a_protocol_error(data: bytes) -> None:
    reader = MessageReader()
    reader.feed(data)
    try:
        messages = _drain(reader)
    except ProtocolError:
        return
    assert sum(len(message.encode()) for message in messages) + reader.buffered == len(data)


def test_a_payload_of_the_largest_size_is_read() -> None:
    message = Message(MsgType.XS_WRITE, 1, 2, bytes(XENSTORE_PAYLOAD_MAX))
    reader = MessageReader()
    reader.feed(message.encode())
    assert reader.next() == message


def test_a_larger_payload_is_refused_as_soon_as_its_header_is_there() -> None:
    reader = MessageReader()
    reader.feed(struct.pack("<IIII", MsgType.XS_WRITE, 1, 2, XENSTORE_PAYLOAD_MAX + 1))
    with pytest.raises(ProtocolError, match="4097"):
        reader.next()


@pytest.mark.parametrize("name", XSD_ERRORS)
def test_errors_cross_by_name(name: str) -> None:
    assert error_payload(Errno[name]) == name.encode() + b"\0"


def test_an_error_without_a_name_on_the_wire_becomes_einval() -> None:
    assert error_payload(Errno.ESRCH) == b"EINVAL\0"


@pytest.mark.parametrize(
    ("payload", "strings"),
    [(b"", []), (b"a\0", [b"a"]), (b"a\0b\0", [b"a", b"b"]), (b"a\0b", [b"a", b"b"]), (b"\0", [b""])],
)
def test_strings_end_with_nul(payload: bytes, strings: list[bytes]) -> None:
    assert split_strings(payload) == strings
