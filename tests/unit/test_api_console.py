"""Expecting and typing, without a guest: patterns, places, ends, limits."""

from __future__ import annotations

import re
import threading

import pytest
from api_rig import make_console

from xenpy.api import transcript
from xenpy.api.console import Console
from xenpy.api.errors import GuestEnded, Timeout
from xenpy.api.progress import Progress
from xenpy.api.transcript import EOF, Transcript
from xenpy.domain.ending import End, Ending


def fed(data: bytes) -> Transcript:
    output = Transcript(Progress("nobody", timeout_s=0.05))
    output.feed(data)
    return output


@pytest.mark.parametrize(
    ("pattern", "text", "before"),
    [
        ("wor.d", "world", "hello\r\n"),
        (b"o", "o", "hell"),
        (re.compile("L+", re.IGNORECASE), "ll", "he"),
        (re.compile(b"[w-z]"), "w", "hello\r\n"),
        ("^wo", "wo", "hello\r\n"),
        (["nothing", "w", "ll"], "ll", "he"),
        (["l", "ll"], "l", "he"),
        ("é", "é", "hello\r\nworld "),
    ],
)
def test_what_is_found(pattern: transcript.Pattern, text: str, before: str) -> None:
    found = fed("hello\r\nworld é\n".encode()).expect(pattern)
    assert (found.text, found.before, found[0]) == (text, before, text)


def test_the_place_moves_behind_each_match_and_may_be_set() -> None:
    output = fed(b"one two one two")
    assert [output.expect(["two", "one"]).index for _ in range(4)] == [1, 0, 1, 0]
    with pytest.raises(Timeout):
        output.expect("one")
    output.position = 4
    assert output.expect("one").before == "two "


def test_groups() -> None:
    found = fed(b"port=0x12").expect(r"(?P<key>\w+)=(?:(\d+)$|0x([0-9a-f]+))")
    assert (found["key"], found[1], found[2], found[3]) == ("port", "port", "", "12")
    with pytest.raises(KeyError):
        found["none"]


def test_output_that_comes_in_pieces_is_found() -> None:
    output = Transcript(Progress("nobody", timeout_s=20))

    def write() -> None:
        for byte in b"[    0.1] booting\nlogin: ":
            output.feed(bytes([byte]))

    thread = threading.Thread(target=write)
    thread.start()
    assert output.expect("login: $").before.endswith("booting\n")
    thread.join()


def test_a_timeout_shows_what_was_wanted() -> None:
    with pytest.raises(Timeout, match=re.escape("nobody: no output like 'a' or 'b' within 0.05 s")) as caught:
        fed(b"").expect(["a", re.compile("b")])
    assert isinstance(caught.value, TimeoutError)


def test_the_end_is_said_at_once_unless_it_is_expected() -> None:
    output = fed(b"first second")
    output.expect("first")
    output.progress.end(Ending(End.CRASH, "by itself"))
    with pytest.raises(GuestEnded, match=r"nobody ended \(crash: by itself\) without output like 'third'") as caught:
        output.expect("third", timeout=600)
    assert caught.value.ending.kind is End.CRASH
    assert output.expect("second", timeout=600).before == " "
    found = output.expect(["third", EOF], timeout=600)
    assert (found.index, found.text) == (1, "")


def test_what_was_written_before_the_end_is_before_it() -> None:
    output = fed(b"left over")
    output.progress.end(Ending(End.POWEROFF))
    assert output.expect(EOF).before == "left over"


def test_old_output_goes_when_there_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcript, "LIMIT", 100)
    output = Transcript(Progress("nobody", timeout_s=0.05))
    for number in range(100):
        output.feed(b"line %d\n" % number)
    assert len(output.data) == 100
    assert output.dropped == sum(len(f"line {number}\n") for number in range(100)) - 100
    assert output.text.endswith("line 99\n")
    assert output.read(since=output.dropped + 92) == "line 99\n"
    assert output.expect("^line 9[5-9]").text == "line 95"
    with pytest.raises(Timeout):
        output.expect("line 1$")


def test_bytes_that_are_no_text_show_as_escapes() -> None:
    output = fed(b"\xff\xfe \x1b[2J ok\n")
    assert output.text == "\\xff\\xfe \x1b[2J ok\n"
    assert output.tail() == "\\xff\\xfe \\x1b[2J ok"
    assert output.data == b"\xff\xfe \x1b[2J ok\n"


def test_the_tail_is_short() -> None:
    output = fed(b"".join(b"%d\r\n" % number for number in range(50)) + b"x" * 30)
    assert output.tail(3) == "48\n49\n" + "x" * 30
    assert output.tail(3, 10) == "x" * 10


def test_typing() -> None:
    console, typed = make_console()
    console.sendline("echo é")
    console.sendline()
    console.send(b"\x03")
    assert typed == ["echo é\n".encode(), b"\n", b"\x03"]


def test_typing_waits_for_room() -> None:
    taken = bytearray()

    def write(data: bytes) -> int:
        taken.extend(data[:3])
        return len(data[:3])

    Console(Progress("nobody"), write).send("0123456789")
    assert taken == b"0123456789"


def test_typing_where_nobody_reads() -> None:
    console = Console(Progress("nobody", timeout_s=0.05), lambda _data: 0)
    with pytest.raises(Timeout, match="has not taken its input within"):
        console.send("x")
    console.progress.end(Ending(End.POWEROFF))
    with pytest.raises(GuestEnded, match="takes no input"):
        console.send("x")
