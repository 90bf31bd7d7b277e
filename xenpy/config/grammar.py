r"""The xl.cfg grammar: text to settings, every value with its position, no meaning attached yet.

Scalars stay text, as in xl: a key decides whether `memory = "64"` and `memory = 64` are numbers. Three things differ
from libxlutil 4.17: its numeric escapes do not work and ours do (`\x41`, `\101`), a comment may end the file without a
newline, and NUL bytes are refused.

Ref: xl.cfg(5), SYNTAX; behaviour compared with libxlutil 4.17
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, NoReturn

from xenpy.config.text import fail, quote
from xenpy.errors import ConfigError

COMMAND_LINE = "<command line>"
MAX_TEXT = 1 << 20  # characters; a configuration is a few kilobytes, more is a wrong file
MAX_DEPTH = 64  # of nested lists; vsnd, the deepest key there is, has two levels

_IDENT_START = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")
_IDENT = _IDENT_START | _DIGITS | frozenset("._")
_NUMBER = _DIGITS | frozenset("abcdefx")
_OCTAL = frozenset("01234567")
_HEX = frozenset("0123456789abcdefABCDEF")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", "'": "'", '"': '"'}


class Position(NamedTuple):
    """Where a value stands; lines and columns count from 1. On the command line the line is the argument's number."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def exact(self) -> str:
        """Name file, line and column."""
        return f"{self.file}:{self.line}:{self.column}"


class Atom(NamedTuple):
    """A string or a number; the difference is the key's to make."""

    text: str
    position: Position


class ListValue(NamedTuple):
    """A bracketed list, perhaps of lists."""

    items: tuple[Value, ...]
    position: Position


Value = Atom | ListValue


class Setting(NamedTuple):
    """One `key = value`, or with `append` a `key += value`, or what these come to; `position` is the last key's."""

    key: str
    value: Value
    position: Position
    append: bool = False


class Settings(Mapping[str, Setting]):
    """The settings in force: a later one replaces an earlier one, `+=` joins lists or strings."""

    __slots__ = ("_settings",)

    def __init__(self, statements: Iterable[Setting] = ()) -> None:
        chains: dict[str, list[Setting]] = {}
        for setting in statements:
            chain = chains.setdefault(setting.key, [])
            if not setting.append:
                chain.clear()
            chain.append(setting)
        self._settings = {key: _joined(chain) for key, chain in chains.items()}

    def __getitem__(self, key: str) -> Setting:
        return self._settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def extended(self, statements: Iterable[Setting]) -> Settings:
        """Return these settings with `statements` applied after them."""
        return Settings([*self._settings.values(), *statements])


def _joined(chain: list[Setting]) -> Setting:
    """Return the one setting that an assignment and the `+=` after it amount to, at the position of the last."""
    first, last = chain[0], chain[-1]
    if len(chain) == 1:
        return first
    for setting in chain:
        if type(setting.value) is not type(first.value):
            kinds = ("a list", "a single value") if isinstance(first.value, Atom) else ("a single value", "a list")
            what = f"cannot add {kinds[0]} to {kinds[1]} (at {first.position})"
            raise fail(setting.position, f"key '{setting.key}': {what}")
    atoms = [setting.value for setting in chain if isinstance(setting.value, Atom)]
    lists = [setting.value for setting in chain if isinstance(setting.value, ListValue)]
    if atoms:
        joined: Value = Atom("".join(atom.text for atom in atoms), last.value.position)
    else:
        joined = ListValue(tuple(item for part in lists for item in part.items), last.value.position)
    return last._replace(value=joined)


class _Token(NamedTuple):
    kind: str  # "ident", "number", "string", "newline", "end", or the punctuation itself
    text: str
    position: Position

    def __str__(self) -> str:
        return {"newline": "the end of the line", "end": "the end of the text"}.get(self.kind) or quote(self.text)


class _Scanner:
    """Tokens of a text, one at a time, with one token of lookahead."""

    def __init__(self, text: str, filename: str, line: int) -> None:
        self._text = text
        self._file = filename
        self._line = line
        self._line_start = 0
        self._offset = 0
        self.token = self._scan()

    def advance(self) -> _Token:
        """Return the current token and move on."""
        token = self.token
        self.token = self._scan()
        return token

    def _position(self, offset: int) -> Position:
        return Position(self._file, self._line, offset - self._line_start + 1)

    def _scan(self) -> _Token:
        text, start = self._text, self._offset
        while start < len(text) and text[start] in " \t":
            start += 1
        if start < len(text) and text[start] == "#":
            newline = text.find("\n", start)
            start = len(text) if newline < 0 else newline
        self._offset = start
        if start == len(text):
            return _Token("end", "", self._position(start))
        char = text[start]
        if char in _IDENT_START:
            return self._run("ident", _IDENT)
        if char in _DIGITS:
            return self._run("number", _NUMBER)
        if char in "'\"":
            return self._string(char)
        position = self._position(start)
        for mark in ("+=", "=", "[", "]", ",", ";"):
            if text.startswith(mark, start):
                self._offset += len(mark)
                return _Token(mark, mark, position)
        if char == "\n":
            self._offset = self._line_start = start + 1
            self._line += 1
            return _Token("newline", char, position)
        raise ConfigError(f"{position.exact}: {_unexpected(char)}")

    def _run(self, kind: str, alphabet: frozenset[str]) -> _Token:
        start = end = self._offset
        while end < len(self._text) and self._text[end] in alphabet:
            end += 1
        self._offset = end
        return _Token(kind, self._text[start:end], self._position(start))

    def _string(self, delimiter: str) -> _Token:
        text, start = self._text, self._offset
        pieces: list[str] = []
        at = start + 1
        while at < len(text) and text[at] != delimiter and text[at] != "\n":
            if text[at] == "\\":
                char, at = self._escape(at)
            else:
                char, at = text[at], at + 1
            pieces.append(char)
        if at >= len(text) or text[at] == "\n":
            raise ConfigError(f"{self._position(start).exact}: this string has no closing {delimiter} on its line")
        self._offset = at + 1
        return _Token("string", "".join(pieces), self._position(start))

    def _escape(self, at: int) -> tuple[str, int]:
        """Return the character that the escape at `at` stands for, and the offset after it."""
        text = self._text
        letter = text[at + 1 : at + 2]
        if letter in _ESCAPES:
            return _ESCAPES[letter], at + 2
        first, width, base, alphabet = (at + 2, 2, 16, _HEX) if letter == "x" else (at + 1, 3, 8, _OCTAL)
        digits = text[first : first + width]
        code = int(digits, base) if len(digits) == width and alphabet.issuperset(digits) else 0
        if not 0 < code < 0x80:
            right = "\\n \\t \\r \\a \\b \\f \\v \\\\ \\' \\\", or an ASCII character as \\xHH or \\ooo"
            raise ConfigError(
                f"{self._position(at).exact}: unknown escape {quote(text[at : at + 2])}; known are {right}"
            )
        return chr(code), first + width


def _unexpected(char: str) -> str:
    """Say why `char` cannot start a token, with the cure where the cause is a common one."""
    if char == "\r":
        return "carriage return: save the file with Unix line ends"
    if char.isupper():
        return f"unexpected {quote(char)}: keys, and the digits of 0x numbers, are written in lower case"
    return f"unexpected character {quote(char)}"


class _Parser:
    def __init__(self, scanner: _Scanner) -> None:
        self._scanner = scanner

    def statements(self) -> Iterator[Setting]:
        scanner = self._scanner
        while scanner.token.kind != "end":
            if scanner.token.kind in ("newline", ";"):
                scanner.advance()
                continue
            yield self._setting()
            if scanner.token.kind not in ("newline", ";", "end"):
                self._refuse("a newline or ';' after the value")

    def _setting(self) -> Setting:
        scanner = self._scanner
        if scanner.token.kind != "ident":
            self._refuse("a key")
        key = scanner.advance()
        if scanner.token.kind not in ("=", "+="):
            self._refuse(f"'=' or '+=' after {quote(key.text)}")
        operator = scanner.advance()
        return Setting(key.text, self._value(0), key.position, append=operator.kind == "+=")

    def _value(self, depth: int) -> Value:
        scanner = self._scanner
        if scanner.token.kind in ("string", "number"):
            token = scanner.advance()
            return Atom(token.text, token.position)
        if scanner.token.kind != "[":
            hint = "; put quotes around text" if scanner.token.kind == "ident" else ""
            self._refuse("a string, a number or '['", hint)
        if depth == MAX_DEPTH:
            raise ConfigError(f"{scanner.token.position.exact}: lists are nested deeper than {MAX_DEPTH}")
        opening = scanner.advance()
        items: list[Value] = []
        self._skip_newlines()
        while scanner.token.kind != "]":
            items.append(self._value(depth + 1))
            self._skip_newlines()
            if scanner.token.kind == ",":
                scanner.advance()
                self._skip_newlines()
            elif scanner.token.kind != "]":
                self._refuse(f"',' or ']' in the list opened at {opening.position.exact}")
        scanner.advance()
        return ListValue(tuple(items), opening.position)

    def _skip_newlines(self) -> None:
        while self._scanner.token.kind == "newline":
            self._scanner.advance()

    def _refuse(self, expected: str, hint: str = "") -> NoReturn:
        token = self._scanner.token
        raise ConfigError(f"{token.position.exact}: expected {expected}, found {token}{hint}")


def parse_statements(text: str, filename: str, line: int = 1) -> list[Setting]:
    """Parse `text` into its settings in order; positions start at `line`.

    Raises ConfigError with file, line and column for the first thing wrong.
    """
    _check_text(text, filename, line)
    return list(_Parser(_Scanner(text, filename, line)).statements())


def _check_text(text: str, filename: str, line: int) -> None:
    """Refuse what no configuration holds; a lone surrogate is how Python keeps an argument's undecodable byte."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{filename}: larger than {MAX_TEXT} characters; this is no configuration file")
    if (nul := text.find("\0")) >= 0:
        line += text.count("\n", 0, nul)
        raise ConfigError(f"{filename}:{line}: NUL byte; this is no configuration file")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line += text.count("\n", 0, error.start)
        raise ConfigError(f"{filename}:{line}: not valid UTF-8") from None


def parse_text(text: str, filename: str) -> Settings:
    """Parse the text of a configuration file; `filename` is for messages only."""
    return Settings(parse_statements(text, filename))


def parse_override(argument: str, number: int) -> list[Setting]:
    """Parse the `number`-th `key=value` argument of a command line; its position is that number as a line.

    The grammar is the file's. A shell takes quotes away, so a value that is not valid grammar and does not start with a
    quote or a bracket is taken as a string, to the argument's end: `cmdline=root=/dev/xvda ro` works.
    """
    _check_text(argument, COMMAND_LINE, number)
    try:
        return list(_Parser(_Scanner(argument, COMMAND_LINE, number)).statements())
    except ConfigError:
        key, equals, value = argument.partition("=")
        append = key.endswith("+")
        key = key.removesuffix("+").strip(" \t")
        is_key = key[:1] in _IDENT_START and _IDENT.issuperset(key)
        if not (is_key and equals) or value.lstrip(" \t")[:1] in ("'", '"', "[") or "\n" in value:
            raise
        position = Position(COMMAND_LINE, number, 1)
        return [Setting(key, Atom(value, position), position, append)]
