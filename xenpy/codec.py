"""Plain data as JSON: frozen dataclasses of numbers, texts, bytes, tuples and mappings, by their annotations.

What is read is checked against the annotations, so that a file made by hand, or by another version, gives an error and no strange object.
"""

from __future__ import annotations

import base64
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class CodecError(ValueError):
    """Says where data does not fit: `what` is wrong at `path`."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path or 'the whole'}: {what}")


def plain(cls: type[T]) -> type[T]:
    """Mark a dataclass as one that is saved: its annotations are looked at when the program runs."""
    return cls


def encode(value: Any) -> Any:
    """Return plain data as what JSON can hold: bytes in base64, mappings as lists of pairs, dataclasses as objects."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return [[encode(key), encode(item)] for key, item in value.items()]
    if is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not plain data")


def decode(kind: type[T], data: Any) -> T:
    """Return plain data of a type from what `encode` returned. Raises CodecError."""
    result: T = _decode(kind, data, "")
    return result


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), data, path)
    if kind is types.NoneType:
        return _checked(data, types.NoneType, path)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*_decode_tuple(tuple(_hints(kind)[name] for name in kind._fields), data, path))
    if origin is tuple:
        return _decode_tuple(get_args(kind), data, path)
    if origin is dict:
        return _decode_dict(get_args(kind), data, path)
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_object(kind, data, path)
    if kind is bytes:
        try:
            return base64.b64decode(_checked(data, str, path), validate=True)
        except ValueError:
            raise CodecError(path, "is not base64") from None
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError:
            raise CodecError(path, f"{data!r} is no {kind.__name__}") from None
    if kind is float and type(data) is int:
        return float(data)
    return _checked(data, kind, path)


def _checked(data: Any, kind: type, path: str) -> Any:
    if type(data) is not kind:
        raise CodecError(path, f"{type(data).__name__} where {kind.__name__} belongs")
    return data


def _decode_union(kinds: tuple[Any, ...], data: Any, path: str) -> Any:
    errors = []
    for kind in kinds:
        try:
            return _decode(kind, data, path)
        except CodecError as error:
            errors.append(error)
    raise errors[-1] if data is not None else errors[0]


def _decode_tuple(kinds: tuple[Any, ...], data: Any, path: str) -> Any:
    items = _checked(data, list, path)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise CodecError(path, f"{len(items)} items where {len(kinds)} belong")
    return tuple(
        _decode(kind, item, f"{path}[{index}]") for index, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


def _decode_dict(kinds: tuple[Any, ...], data: Any, path: str) -> Any:
    pairs = [_decode_tuple(kinds, pair, path) for pair in _checked(data, list, path)]
    return dict(pairs)


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode_object(kind: Any, data: Any, path: str) -> Any:
    values = _checked(data, dict, path)
    hints = _hints(kind)
    names = [field.name for field in fields(kind)]
    if set(values) != set(names):
        odd = sorted(set(values) ^ set(names))
        raise CodecError(path, f"{', '.join(odd)}: not what {kind.__name__} has")
    return kind(**{name: _decode(hints[name], values[name], f"{path}.{name}" if path else name) for name in names})
