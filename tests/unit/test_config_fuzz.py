"""Arbitrary input to every parser: a result or a ConfigError, and what is written is read back."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from xenpy.config import build, parse_text
from xenpy.config.grammar import Atom, Value, parse_override
from xenpy.config.keys import Kind, Status, table
from xenpy.errors import ConfigError

PIECES = st.sampled_from(
    [
        "a",
        "name",
        "=",
        "+=",
        "'",
        '"',
        "'x'",
        "1",
        "0x",
        "[",
        "]",
        ",",
        ";",
        "\n",
        "#",
        " ",
        "\\",
        "\\x41",
        "\0",
        "\ud800",
    ]
)
TEXTS = st.text() | st.lists(PIECES).map("".join)
SPEC_PIECES = st.sampled_from(
    [
        *(
            "mac=",
            "rate=",
            "10Mb/s",
            "@",
            "vdev=",
            "xvda",
            "target=",
            "raw",
            "phy:",
            "/x",
            "cdrom",
            "devid=",
            "tag=",
            "path=",
        ),
        *(
            "name=",
            "connection=",
            "pty",
            "vnc=",
            "host",
            "1:eax=",
            "node:",
            "all",
            "^",
            ":",
            ",",
            "=",
            " ",
            "0",
            "-",
            "9" * 20,
        ),
    ]
)
SPECS = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(SPEC_PIECES).map("".join)
ACTED = sorted(key.name for key in table().values() if key.status is Status.ACTED)
LISTS = {key.name for key in table().values() if key.kind is Kind.LIST}

IDENTS = st.from_regex(r"[a-z][._0-9a-z]{0,8}", fullmatch=True)
STRINGS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = st.recursive(STRINGS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


def quoted(text: str) -> str:
    escapes = {"\\": r"\\", "'": r"\'", "\n": r"\n"}
    return "'" + "".join(escapes.get(char, char) for char in text) + "'"


def written(value: object) -> str:
    return quoted(value) if isinstance(value, str) else f"[{', '.join(written(item) for item in list_of(value))}]"


def list_of(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def plain(value: Value) -> object:
    return value.text if isinstance(value, Atom) else [plain(item) for item in value.items]


@given(TEXTS)
@example("a='\\")
@example("a=" + "[" * 500)
def test_any_text_is_settings_or_an_error(text: str) -> None:
    with suppress(ConfigError):
        parse_text(text, "f")


@given(TEXTS)
@example("a=\ud800")
def test_any_override_is_settings_or_an_error(text: str) -> None:
    with suppress(ConfigError):
        for setting in parse_override(text, 1):
            str(setting.value).encode()


@given(st.dictionaries(IDENTS, VALUES, max_size=6), st.sampled_from(["\n", ";", " # x\n", "\n\n"]))
def test_what_is_written_is_read_back(keys: dict[str, object], separator: str) -> None:
    text = separator.join(f"{key} = {written(value)}" for key, value in keys.items())
    assert {key: plain(setting.value) for key, setting in parse_text(text, "f").items()} == keys


@given(st.sampled_from(ACTED), SPECS, st.sampled_from(["pv", "pvh"]))
def test_any_value_of_any_key_is_a_domain_or_an_error(key: str, value: str, kind: str) -> None:
    shown = f"[{quoted(value)}]" if key in LISTS else quoted(value)
    with suppress(ConfigError):
        build(parse_text(f"name='g'; kernel='k'; type='{kind}'\n{key} = {shown}", "f"), "f")


@given(st.dictionaries(st.sampled_from(sorted(table())), VALUES, max_size=5), st.booleans())
def test_any_settings_are_a_domain_or_an_error(keys: dict[str, object], lenient: bool) -> None:
    text = "name='g'; kernel='k'; type='pvh'\n" + "\n".join(f"{key} = {written(value)}" for key, value in keys.items())
    with suppress(ConfigError):
        build(parse_text(text, "f"), "f", lenient=lenient)


@given(
    name=st.text("abcdefXYZ-_.019", min_size=1, max_size=20),
    kind=st.sampled_from(["pv", "pvh"]),
    memory=st.integers(1, 1 << 20),
    vcpus=st.integers(1, 128),
    cmdline=STRINGS,
    base=st.sampled_from(["{}", "{:#x}", "0{:o}", '"{}"']),
)
def test_generated_configurations_come_out_as_they_went_in(
    name: str, kind: str, memory: int, vcpus: int, cmdline: str, base: str
) -> None:
    text = f"name={quoted(name)}; type='{kind}'; kernel='k'; memory={base.format(memory)}\n"
    config = build(parse_text(text + f"vcpus={base.format(vcpus)}; cmdline={quoted(cmdline)}", "f"), "f")
    assert (config.name, config.type, config.memory_mib, config.vcpus) == (name, kind, memory, vcpus)
    assert config.cmdline == cmdline
