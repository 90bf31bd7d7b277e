"""Standing between callers and what they call, any number of us at a time, coming and going in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


class _Chain:
    """What stands in the place of one attribute: the last wrapper is called first."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name
        self._original = getattr(owner, name)
        self._was_set = name in vars(owner)
        self.wrappers: list[Callable[[Any], Any]] = []
        self.outer: list[Callable[[Any], Any]] = []

    def rebuild(self) -> None:
        """Have the attribute be what the wrappers make of the original."""
        outermost = self._original
        for wrap in (*self.wrappers, *self.outer):
            outermost = wrap(outermost)
        if self.wrappers or self.outer or self._was_set:
            setattr(self._owner, self._name, outermost)
        else:
            delattr(self._owner, self._name)


def interpose(owner: object, name: str, wrap: Callable[[F], F], *, outer: bool = False) -> Callable[[], None]:
    """Have `owner.name` be `wrap(what it was)`, until what this returns is called; `outer` ones are around all that are not.

    `wrap` is called anew when others come and go.
    """
    chains: dict[str, _Chain] = vars(owner).setdefault("_interposed_chains", {})
    chain = chains.get(name)
    if chain is None:
        chain = chains[name] = _Chain(owner, name)
    wrappers = chain.outer if outer else chain.wrappers
    wrappers.append(wrap)
    chain.rebuild()

    def undo() -> None:
        wrappers.remove(wrap)
        chain.rebuild()
        if not (chain.wrappers or chain.outer):
            del chains[name]

    return undo
