"""The assembler's labels and errors, and its code on this processor."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy import libc
from xenpy.asm import Assembler, AssemblerError, mem
from xenpy.asm.registers import (
    al,
    ax,
    bl,
    cl,
    cr3,
    cs,
    ds,
    dx,
    eax,
    ecx,
    edi,
    edx,
    gs,
    r8,
    rax,
    rbp,
    rbx,
    rcx,
    rdi,
    rdx,
    rsi,
    rsp,
    sil,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ORIGIN = 0xFFFF808000200000
U64 = (1 << 64) - 1


def error(source: Callable[[Assembler], object]) -> str:
    def whole() -> None:
        a = Assembler(ORIGIN)
        source(a)
        a.assemble()

    with pytest.raises(AssemblerError) as caught:
        whole()
    return str(caught.value)


def twice(a: Assembler) -> None:
    a.label("loop")
    a.nop()
    a.label("loop")


def far_forwards(a: Assembler) -> None:
    a.jnz("away", short=True)
    a.data(bytes(128))
    a.label("away")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda a: a.jz("slow"), "slow: unknown label, used by jz near 0xffff808000200002"),
        (
            lambda a: a.mov(rax, mem(rip="vcpu", seg=gs)),
            "vcpu: unknown label, used by gs:[rip:vcpu] near 0xffff808000200004",
        ),
        (lambda a: a.quad("entry"), "entry: unknown label, used by quad near 0xffff808000200000"),
        (lambda a: a.address("entry"), "entry: unknown label"),
        (twice, "loop: duplicate label, at 0xffff808000200001 and 0xffff808000200000"),
        (far_forwards, "away: 8 bits do not reach from jnz near 0xffff808000200001"),
        (lambda a: a.call(0x1000), "0x1000: 32 bits do not reach from call near 0xffff808000200001"),
        (lambda a: a.lea(rax, mem(rip=ORIGIN + (1 << 31) + 7)), "32 bits do not reach from [rip:0xffff808080200007]"),
        (lambda a: a.align(0), "align 0: must be positive"),
        (lambda a: a.quad(1 << 64), "quad: 0x10000000000000000 does not fit 64 bits"),
    ],
)
def test_places_that_are_wrong(source: Callable[[Assembler], object], message: str) -> None:
    assert message in error(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda a: a.mov(rax, ecx), "mov rax, ecx: ecx is not of 8 bytes"),
        (lambda a: a.mov(mem(rdi), rcx, size=1), "mov [rdi], rcx: rcx is not of 1 bytes"),
        (lambda a: a.mov(mem(rdi), 1), "mov [rdi]: size= must say 1, 2, 4 or 8 bytes, not 0"),
        (lambda a: a.inc(mem(rdi), size=3), "inc [rdi]: size= must say 1, 2, 4 or 8 bytes, not 3"),
        (lambda a: a.mov(al, 256), "mov: 0x100 does not fit 8 bits"),
        (lambda a: a.mov(ax, -0x8001), "mov: -0x8001 does not fit 16 bits"),
        (lambda a: a.mov(rax, 1 << 64), "mov: 0x10000000000000000 does not fit 64 bits"),
        (lambda a: a.mov(mem(rdi), 1 << 31, size=8), "mov: 0x80000000 is not the sign extension of 32 bits"),
        (lambda a: a.add(rax, 1 << 31), "add: 0x80000000 is not the sign extension of 32 bits"),
        (lambda a: a.push(1 << 31), "push: 0x80000000 is not the sign extension of 32 bits"),
        (lambda a: a.push(eax), "push eax: is not of 8 bytes"),
        (lambda a: a.add(mem(rdi), mem(rsi), size=8), "add [rdi], [rsi]: both operands are in memory"),
        (lambda a: a.mov(mem(rdi), mem(rsi), size=8), "mov [rdi], [rsi]: both operands are in memory"),
        (lambda a: a.test(mem(rdi), mem(rsi), size=8), "test [rdi], [rsi]: both operands are in memory"),
        (lambda a: a.xchg(mem(rdi), mem(rsi)), "both operands are in memory"),
        (lambda a: a.mov(cs, ax), "mov cs, ax: no such instruction"),
        (lambda a: a.mov(ds, al), "mov ds, al: no such instruction"),
        (lambda a: a.mov(cr3, eax), "mov cr3, eax: no such instruction"),
        (lambda a: a.mov(cr3, 0), "mov cr3, 0: no such instruction"),
        (lambda a: a.movzx(ax, cl, size=2), "movzx cl: is not of 2 bytes"),
        (lambda a: a.movzx(al, cl), "movzx al, cl: extends 1 or 2 bytes to more, not 1 to 1"),
        (lambda a: a.movsx(rax, ecx), "movsx rax, ecx: extends 1 or 2 bytes to more, not 4 to 8"),
        (lambda a: a.movsxd(eax, ecx), "movsxd eax, ecx: the destination must be a 64-bit register"),
        (lambda a: a.shl(eax, 32), "shl eax, 32: the count is cl or 0 to 31"),
        (lambda a: a.shl(eax, bl), "shl eax, bl: the count is cl or 0 to 31"),
        (lambda a: a.bts(rax, 64), "bts rax, 64: there are 64 bits"),
        (lambda a: a.bt(mem(rdi), -1, size=4), "bt [rdi], -1: there are 32 bits"),
        (lambda a: a.bsf(al, cl), "bsf al: has no form for bytes"),
        (lambda a: a.lock.add(rax, mem(rdi)), "lock add rax: only a destination in memory can be locked"),
        (lambda a: a.lock.xchg(rax, rcx), "lock xchg rax: only a destination in memory can be locked"),
        (lambda a: a.setz(eax), "setz eax: is not of 1 bytes"),
        (lambda a: a.jmp(eax), "jmp eax: is not of 8 bytes"),
        (lambda a: a.ltr(eax), "ltr eax: is not of 2 bytes"),
        (lambda a: a.wrgsbase(ax), "wrgsbase ax: the register must have 4 or 8 bytes"),
        (lambda a: a.in_(rax, dx), "in rax: the data are in al, ax or eax"),
        (lambda a: a.out(dx, cl), "out cl: the data are in al, ax or eax"),
        (lambda a: a.out(0x100, al), "out 256: the port is dx or 0 to 0xff"),
        (lambda a: a.in_(al, edx), "in edx: the port is dx or 0 to 0xff"),
        (lambda _: mem(eax), "[eax]: the base must be a 64-bit register"),
        (lambda _: mem(rax, scale=(rsp, 1)), "[rax + rsp*1]: the index must be a 64-bit register other than rsp"),
        (lambda _: mem(rax, scale=(ecx, 1)), "[rax + ecx*1]: the index must be a 64-bit register other than rsp"),
        (lambda _: mem(rax, scale=(rcx, 3), seg=gs), "gs:[rax + rcx*3]: the index is multiplied by 1, 2, 4 or 8"),
        (lambda _: mem(rax, 1 << 31), "[rax + 0x80000000]: the displacement does not fit 32 bits"),
        (lambda _: mem(rax, rip="here"), "[rax + rip:here]: rip takes neither base nor index"),
    ],
)  # fmt: skip
def test_operands_that_do_not_fit(source: Callable[[Assembler], object], message: str) -> None:
    assert message in error(source)


def test_an_instruction_refused_leaves_no_bytes() -> None:
    a = Assembler(ORIGIN)
    for wrong in (
        lambda: a.mov(rax, ecx),
        lambda: a.add(rax, 1 << 40),
        lambda: a.lock.inc(rax),
        lambda: a.out(256, al),
    ):
        with pytest.raises(AssemblerError):
            wrong()
    assert a.here == ORIGIN


def test_code_may_grow_after_assembling() -> None:
    a = Assembler(ORIGIN)
    a.jmp("end")
    with pytest.raises(AssemblerError):
        a.assemble()
    a.label("end")
    first = a.assemble()
    a.jmp("end")
    assert a.assemble() == first + b"\xeb\xfe"
    assert a.address("end") == ORIGIN + 5


class Native:
    """Runs routines with the signature of `xenpy.atomics`' own: three words in rdi, rsi, rdx, one back in rax."""

    def __init__(self) -> None:
        self._mapped: list[tuple[int, int]] = []

    def __call__(self, a: Assembler) -> Callable[..., int]:
        code = a.assemble()
        fd = os.memfd_create("test-asm", os.MFD_CLOEXEC)
        try:
            os.write(fd, code)
            hva = libc.map_memory(0, len(code), libc.PROT_READ | libc.PROT_EXEC, libc.MAP_PRIVATE, fd)
        finally:
            os.close(fd)
        self._mapped.append((hva, len(code)))
        function: Any = libc.native_function(hva, "native_word_op")
        return lambda rdi=0, rsi=0, rdx=0: int(function(rdi, rsi, rdx))

    def close(self) -> None:
        for hva, size in self._mapped:
            libc.unmap_memory(hva, size)


@pytest.fixture(scope="module")
def native() -> Iterator[Native]:
    runner = Native()
    yield runner
    runner.close()


@pytest.fixture
def words() -> Iterator[tuple[memoryview, int]]:
    hva = libc.map_memory(0, 4096, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS)
    view = libc.buffer(hva, 4096).cast("Q")
    yield view, hva
    view.release()
    libc.unmap_memory(hva, 4096)


def test_a_loop_over_memory(native: Native, words: tuple[memoryview, int]) -> None:
    view, hva = words
    a = Assembler()
    a.xor(eax, eax)
    a.xor(ecx, ecx)
    a.label("next")
    a.cmp(rcx, rsi)
    a.jae("done")
    a.add(rax, mem(rdi, scale=(rcx, 8)))
    a.inc(rcx)
    a.jmp("next")
    a.label("done")
    a.ret()
    total = native(a)
    view[:6] = memoryview(b"".join(n.to_bytes(8, "little") for n in (1, 2, 3, U64, 1 << 63, 9))).cast("Q")
    assert [total(hva, n) for n in range(7)] == [0, 1, 3, 6, 5, (1 << 63) + 5, (1 << 63) + 14]


def test_a_counter_of_many_threads(native: Native, words: tuple[memoryview, int]) -> None:
    view, hva = words
    a = Assembler()
    a.mov(rax, mem(rdi))
    a.label("retry")
    a.lea(rdx, mem(rax, 1))
    a.lock.cmpxchg(mem(rdi), rdx)
    a.jnz("retry")
    a.dec(rsi)
    a.jnz("retry")
    a.ret()
    count = native(a)
    threads = [threading.Thread(target=count, args=(hva, 100_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert view[0] == 400_000


def test_a_table_of_jumps(native: Native) -> None:
    a = Assembler()
    a.cmp(edi, 3)
    a.ja("none")
    a.lea(rax, mem(rip="table"))
    a.movsxd(rdx, mem(rax, scale=(rdi, 4)))
    a.add(rax, rdx)
    a.jmp(rax)
    a.align(8)
    a.label("table")
    a.data(b"".join((16 + 8 * n).to_bytes(4, "little") for n in range(4)))
    for n in range(4):
        a.mov(eax, 100 + n)
        a.ret()
        a.align(8)
    a.label("none")
    a.mov(rax, -1)
    a.ret()
    choose = native(a)
    assert [choose(n) for n in range(5)] == [100, 101, 102, 103, U64]


def test_calls_and_the_stack(native: Native) -> None:
    a = Assembler()
    a.push(rbp)
    a.push(rdi)
    a.pop(rax)
    a.push(-2)
    a.pop(r8)
    a.call("double")
    a.call("double")
    a.add(rax, r8)
    a.pop(rbp)
    a.ret()
    a.label("double")
    a.shl(rax, 1)
    a.ret()
    assert native(a)(10) == 38


@given(left=st.integers(0, U64), right=st.integers(0, U64))
def test_immediates_and_conditions(native: Native, left: int, right: int) -> None:
    a = Assembler()
    a.mov(rcx, left)
    a.mov(rax, right - (1 << 64) if right >> 63 else right)  # the same word written signed
    a.cmp(rcx, rax)
    a.setb(sil)
    a.movzx(rsi, sil)
    a.xchg(rax, rcx)
    a.sub(rax, rcx)
    a.shl(rax, 1)
    a.or_(rax, rsi)
    a.ret()
    assert native(a)() == ((left - right) * 2 | (left < right)) & U64


def test_bytes_by_name(native: Native, words: tuple[memoryview, int]) -> None:
    view, hva = words
    view[0] = 0x8877665544332211
    a = Assembler()
    a.push(rbx)
    a.movsx(rbx, mem(rdi, 7), size=1)
    a.mov(sil, mem(rdi, 1))
    a.mov(mem(rdi, 8), sil)
    a.rol(mem(rdi, 2), 4, size=2)
    a.mov(rax, rbx)
    a.pop(rbx)
    a.ret()
    assert native(a)(hva, U64) == 0xFFFFFFFFFFFFFF88
    assert view[1] == 0x22
    assert view[0] == 0x8877665543342211
