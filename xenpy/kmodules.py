"""A kernel's loadable modules: found by name, with what must be loaded before them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from xenpy.errors import ConfigError, HostError

MAX_MODULE_SIZE = 64 << 20
"""Bound on an unpacked module in bytes; the largest of Debian's are a third of it."""

SIGNATURE_MARKER = b"~Module signature appended~\n"
SIGNATURE_TRAILER = 12
"""Bytes of struct module_signature."""


def _canonical(name: str) -> str:
    """Return a module's name as the kernel spells it: `-` and `_` are the same to it."""
    return name.replace("-", "_")


@dataclass(frozen=True)
class Module:
    """One loadable module: its canonical name and unpacked ELF image."""

    name: str
    image: bytes


@dataclass(frozen=True)
class ModuleTree:
    """The modules below `/lib/modules/RELEASE`, whose dependencies are read from the modules themselves.

    Packages do not carry `modules.dep`: `depmod` writes it at installation, and nothing is installed here.
    """

    root: Path

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {_canonical(path.name.partition(".ko")[0]): path for path in sorted(self.root.rglob("*.ko*"))}

    @cached_property
    def _builtin(self) -> frozenset[str]:
        listing = self.root / "modules.builtin"
        lines = listing.read_text().splitlines() if listing.exists() else []
        return frozenset(_canonical(Path(line).stem) for line in lines)

    def closure(self, names: list[str] | tuple[str, ...]) -> list[Module]:
        """Return the modules `names` and all they depend on, each once, in an order in which they load.

        What is built into the kernel is left out.  Raises ConfigError for a name that the kernel does not have.
        """
        loaded: dict[str, Module | None] = {}
        for name in names:
            self._visit(_canonical(name), loaded)
        return [module for module in loaded.values() if module is not None]

    def _visit(self, name: str, loaded: dict[str, Module | None], path: tuple[str, ...] = ()) -> None:
        if name in loaded or name in path or name in self._builtin:
            return
        if name not in self._files:
            from difflib import get_close_matches

            near = get_close_matches(name, self._files, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ConfigError(f"kernel {self.root.name} has no module {name}{hint}")
        module = Module(name, _unpacked(self._files[name]))
        hard, soft = _dependencies(module)
        for dependency in (*hard, *(each for each in soft if each in self._files)):
            self._visit(dependency, loaded, (*path, name))
        loaded[name] = module


def unsigned(image: bytes) -> bytes:
    """Return a module without its signature, so that a kernel which does not insist on one need not compute the digest.

    Ref: Linux scripts/sign-file.c: signature, struct module_signature (12 bytes, sig_len big-endian at 8), marker
    """
    if not image.endswith(SIGNATURE_MARKER):
        return image
    trailer = len(image) - len(SIGNATURE_MARKER) - SIGNATURE_TRAILER
    return image[: max(0, trailer - int.from_bytes(image[trailer + 8 : trailer + 12], "big"))]


def _dependencies(module: Module) -> tuple[list[str], list[str]]:
    """Return what the module needs, and what its author wants loaded before it where it exists.

    Ref: Linux include/linux/module.h: .modinfo holds NUL-ended `depends=a,b` and `softdep=pre: c d post: e`
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(module.image)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise HostError(f"kernel module {module.name} is not an ELF object: {error}") from error
    hard: list[str] = []
    soft: list[str] = []
    for entry in section.data().decode("latin-1").split("\0") if section else ():
        key, _, value = entry.partition("=")
        if key == "depends":
            hard += [_canonical(name) for name in value.split(",") if name]
        elif key == "softdep" and "pre:" in value:
            before = value.partition("pre:")[2].partition("post:")[0]
            soft += [_canonical(name) for name in before.split()]
    return hard, soft


def _unpacked(path: Path) -> bytes:
    """Return the ELF image in a module file, `.ko` or packed as the distribution does; raises HostError."""
    import gzip
    import lzma

    data = path.read_bytes()
    try:
        match path.suffix:
            case ".xz":
                return lzma.LZMADecompressor(memlimit=MAX_MODULE_SIZE * 2).decompress(data, MAX_MODULE_SIZE)
            case ".gz":
                return gzip.decompress(data)
            case ".zst":
                import zstandard

                return bytes(zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_MODULE_SIZE))
            case _:
                return data
    except ImportError:
        raise HostError(f"{path.name} is packed with zstd: install xenpy[compression]") from None
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise HostError(f"{path}: damaged kernel module ({error})") from error
