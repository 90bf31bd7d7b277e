"""The grammar of xl.cfg, accepted and refused texts alike as libxlutil has them."""

from __future__ import annotations

import pytest

from xenpy.config.grammar import MAX_DEPTH, MAX_TEXT, Atom, ListValue, Settings, Value, parse_override, parse_text
from xenpy.errors import ConfigError


def plain(value: Value) -> object:
    return value.text if isinstance(value, Atom) else [plain(item) for item in value.items]


def parsed(text: str) -> dict[str, object]:
    return {key: plain(setting.value) for key, setting in parse_text(text, "f").items()}


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("\n;\n # only a comment", {}),
        ("a='x'", {"a": "x"}),
        ('a = "it\'s"', {"a": "it's"}),
        ("a='say \"x\"'", {"a": 'say "x"'}),
        ("a='x';b=1\nc=0x1f # comment\nd=010", {"a": "x", "b": "1", "c": "0x1f", "d": "010"}),
        ("; a=1;;", {"a": "1"}),
        ("a='#;=[]'", {"a": "#;=[]"}),
        (r"a='\a\b\f\n\r\t\v\\\'\"'", {"a": "\a\b\f\n\r\t\v\\'\""}),
        (r"a='\x41\101'", {"a": "AA"}),
        ("a=[]", {"a": []}),
        ("a=[1,'b',[2,[]],]", {"a": ["1", "b", ["2", []]]}),
        ("a=[\n1\n,\n# comment\n2,\n]", {"a": ["1", "2"]}),
        ("a.b_9=1", {"a.b_9": "1"}),
        ("a=1\na=2", {"a": "2"}),
        ("a='x'\na+='y'", {"a": "xy"}),
        ("a+='y'", {"a": "y"}),
        ("a=[1]\na+=[2]\na+=[3]", {"a": ["1", "2", "3"]}),
        ("a=[1]\na=[2]\na+=[3]", {"a": ["2", "3"]}),
        ("a='\u00e9'", {"a": "\u00e9"}),
    ],
)
def test_accepts(text: str, settings: dict[str, object]) -> None:
    assert parsed(text) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "f:1:2: expected '=' or '+=' after \"a\", found the end of the text"),
        ("a\n=1", "f:1:2: expected '=' or '+=' after \"a\", found the end of the line"),
        ("a=\n1", "f:1:3: expected a string, a number or '[', found the end of the line"),
        ("a=b", "f:1:3: expected a string, a number or '[', found \"b\"; put quotes around text"),
        ("a=1 b=2", "f:1:5: expected a newline or ';' after the value, found \"b\""),
        ("=1", 'f:1:1: expected a key, found "="'),
        ("\n\n9a=1", 'f:3:1: expected a key, found "9a"'),
        ("a=[1 2]", "f:1:6: expected ',' or ']' in the list opened at f:1:3, found \"2\""),
        ("a=[1,,2]", "f:1:6: expected a string, a number or '[', found \",\""),
        ("a=[\n1", "f:2:2: expected ',' or ']' in the list opened at f:1:3, found the end of the text"),
        ("a='x", "f:1:3: this string has no closing ' on its line"),
        ("a='x\ny'", "f:1:3: this string has no closing ' on its line"),
        ("a='x\\\ny'", 'f:1:5: unknown escape "\\'),
        (r"a='\q'", 'f:1:4: unknown escape "\\q"; known are \\n'),
        (r"a='\x4'", 'f:1:4: unknown escape "\\x"'),
        (r"a='\000'", 'f:1:4: unknown escape "\\0"'),
        (r"a='\xff'", 'f:1:4: unknown escape "\\x"'),
        ("Name=1", 'f:1:1: unexpected "N": keys, and the digits of 0x numbers, are written in lower case'),
        ("a=0x1F", 'f:1:6: unexpected "F"'),
        ("a=1\r\n", "f:1:4: carriage return: save the file with Unix line ends"),
        ("a={1}", 'f:1:3: unexpected character "{"'),
        ("a=-1", 'f:1:3: unexpected character "-"'),
        ("\ufeffa=1", 'f:1:1: unexpected character "\\ufeff"'),
        ("a=1\nb='\0'", "f:2: NUL byte"),
        ("a=1\nb='\udcff'", "f:2: not valid UTF-8"),
        ("a='x'\na+=[1]", "f:2: key 'a': cannot add a list to a single value (at f:1)"),
        ("a=[1]\na+='x'", "f:2: key 'a': cannot add a single value to a list (at f:1)"),
    ],
)
def test_refuses_with_the_place_and_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_text(text, "f")
    assert str(caught.value).startswith(message)


def test_positions_are_those_of_the_file() -> None:
    setting = parse_text("\n  key = [ 'a',\n 'b' ]", "g.cfg")["key"]
    assert setting.position.exact == "g.cfg:2:3"
    assert str(setting.position) == "g.cfg:2"
    assert isinstance(setting.value, ListValue)
    assert [item.position.exact for item in setting.value.items] == ["g.cfg:2:11", "g.cfg:3:2"]


def test_nesting_is_bounded() -> None:
    parse_text("a=" + "[" * MAX_DEPTH + "]" * MAX_DEPTH, "f")
    with pytest.raises(ConfigError, match="nested deeper than"):
        parse_text("a=" + "[" * 100_000, "f")


def test_size_is_bounded() -> None:
    with pytest.raises(ConfigError, match="larger than"):
        parse_text("#" * (MAX_TEXT + 1), "f")


def test_many_additions_are_joined_in_linear_time() -> None:
    count = MAX_TEXT // len("a+=[1]\n")
    value = parse_text("a+=[1]\n" * count, "f")["a"].value
    assert isinstance(value, ListValue)
    assert len(value.items) == count


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ('name="x"', "x"),
        ("name=x", "x"),
        ("name = x", " x"),
        ("memory=32", "32"),
        ("cmdline=root=/dev/xvda ro", "root=/dev/xvda ro"),
        ("cmdline=", ""),
        ("cmdline=12 34", "12 34"),
        ("cmdline=a;b=c", "a;b=c"),
        ("memory=64M", "64M"),
        ("xenpy_xen_version=4.20", "4.20"),
        ("disk=['a']", ["a"]),
    ],
)
def test_an_override_may_lack_quotes(argument: str, value: object) -> None:
    (setting,) = parse_override(argument, 3)
    assert plain(setting.value) == value
    assert str(setting.position) == "<command line>:3"


@pytest.mark.parametrize(
    "argument", ["name", "=x", "Name=x", "name='x", "disk=['a'", "name=[x]", "a=b\nc=d", "a=\udcff"]
)
def test_an_override_that_is_no_setting_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"^<command line>:2"):
        parse_override(argument, 2)


def test_overrides_continue_the_file() -> None:
    settings = parse_text("a='x'\nb=[1]\nc=1", "f")
    overrides = ["a+=y", "b+=[2]", "c=2;d=3"]
    settings = settings.extended(s for number, arg in enumerate(overrides, 1) for s in parse_override(arg, number))
    assert {key: plain(setting.value) for key, setting in settings.items()} == {
        "a": "xy",
        "b": ["1", "2"],
        "c": "2",
        "d": "3",
    }
    assert isinstance(settings, Settings)
