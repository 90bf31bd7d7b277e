"""Dispatch: what is done once for every hypercall, and that no argument gets past it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fakes import RAM_SIZE, UNMAPPED, FakeDomain, fake_domain
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy.abi.op import Op
from xenpy.errors import Errno, XenError
from xenpy.hypercalls import dispatch
from xenpy.hypercalls.dispatch import HYPERCALLS, NAMES, ArrayHypercall, Hypercall, describe

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRATCH = 200
SINGLE = Op(1, "single", "sched_shutdown", out=True)
IN_ONLY = Op(2, "in_only", "sched_shutdown")
BARE = Op(3, "bare")


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare hypercalls for one test only."""
    monkeypatch.setattr(dispatch, "HYPERCALLS", dict(HYPERCALLS))
    monkeypatch.setattr(dispatch, "NAMES", dict(NAMES))


def scratch(kind: type[Hypercall], action: Any) -> Hypercall:
    made = kind(SCRATCH, "scratch")
    made.handles(SINGLE)(action)
    made.handles(IN_ONLY)(action)
    made.handles(BARE)(lambda _call: 77)
    return made


def test_unknown_hypercalls_and_commands_are_enosys_and_logged_once_a_key(domain: FakeDomain) -> None:
    assert domain.hypercall(99) == -Errno.ENOSYS
    assert domain.hypercall(29, 4000) == -Errno.ENOSYS
    assert domain.hypercall(29, 4000) == -Errno.ENOSYS
    assert domain.logged.keys() == {"hypercall.99", "sched_op.4000"}


@pytest.mark.usefixtures("registry")
def test_a_hypercall_or_command_declared_twice_is_refused() -> None:
    made = scratch(Hypercall, lambda _call, _op: 0)
    with pytest.raises(ValueError, match="declared twice"):
        Hypercall(SCRATCH, "again")
    with pytest.raises(ValueError, match="handled twice"):
        made.handles(SINGLE)


@pytest.mark.usefixtures("registry")
def test_results_are_copied_out_on_success_only(domain: FakeDomain) -> None:
    outcome: list[Any] = [None]

    def action(call: Any, op: Any) -> int | None:
        op.reason += 1
        if isinstance(outcome[0], XenError):
            raise outcome[0]
        return outcome[0]

    scratch(Hypercall, action)
    for result, returned, stored in [(None, 0, 6), (5, 5, 6), (-3, -3, 5), (XenError(Errno.EBUSY), -16, 5)]:
        outcome[0] = result
        domain.put(0x1000, (5, 4))
        assert domain.hypercall(SCRATCH, 1, 0x1000) == returned
        assert domain.number(0x1000, 4) == stored
    domain.put(0x1000, (5, 4))
    outcome[0] = None
    assert domain.hypercall(SCRATCH, 2, 0x1000) == 0
    assert domain.number(0x1000, 4) == 5
    assert domain.hypercall(SCRATCH, 3, UNMAPPED) == 77


@pytest.mark.usefixtures("registry")
def test_an_argument_that_cannot_be_read_or_written_is_efault(domain: FakeDomain) -> None:
    ran = []
    scratch(Hypercall, lambda _call, op: ran.append(op.reason))
    assert domain.hypercall(SCRATCH, 1, UNMAPPED) == -Errno.EFAULT
    assert ran == []
    domain.vcpus[0].readonly = {1}
    assert domain.hypercall(SCRATCH, 1, 0x1000) == -Errno.EFAULT
    assert ran == [0]
    assert domain.hypercall(SCRATCH, 2, 0x1000) == 0


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("wide", [False, True])
def test_an_array_is_walked_until_a_refusal(domain: FakeDomain, wide: bool) -> None:
    def action(call: Any, op: Any) -> int | None:
        op.reason *= 2
        if op.reason == 6:
            raise XenError(Errno.EPERM)
        return None

    scratch(ArrayHypercall, action)
    domain.put(0x1000, *((value, 4) for value in (1, 2, 3, 4)))
    assert domain.hypercall(SCRATCH, 1, 0x1000, 4, wide=wide) == -Errno.EPERM
    assert domain.memory.read(0x1000, 16) == b"".join(value.to_bytes(4, "little") for value in (2, 4, 3, 4))
    assert domain.hypercall(SCRATCH, 1, 0x1000, 0, wide=wide) == 0
    assert domain.hypercall(SCRATCH, 1, RAM_SIZE - 8, 3, wide=wide) == -Errno.EFAULT
    assert domain.hypercall(SCRATCH, 1, 0x1000, 0xFFFF_FFFF, wide=wide) == -Errno.EINVAL
    assert domain.hypercall(SCRATCH, 3, 0x1000, 5, wide=wide) == 77


@pytest.mark.usefixtures("registry")
def test_a_long_array_lets_others_in(domain: FakeDomain) -> None:
    scratch(ArrayHypercall, lambda _call, _op: None)
    checkpoints = []
    call = domain.call(SCRATCH, 1, 0x1000, 1000, checkpoint=lambda: checkpoints.append(1))
    assert dispatch.dispatch(call) == 0
    assert len(checkpoints) >= 10


@pytest.mark.usefixtures("registry")
def test_only_refusals_are_caught(domain: FakeDomain) -> None:
    def bug(call: Any, op: Any) -> None:
        raise KeyError("ours")

    scratch(Hypercall, bug)
    with pytest.raises(KeyError):
        domain.hypercall(SCRATCH, 1, 0x1000)


def test_calls_are_described_for_traces(domain: FakeDomain) -> None:
    assert describe(domain.call(29, 3))[0] == "sched_op.poll"
    assert describe(domain.call(29, 3))[1].struct == "sched_poll"
    assert describe(domain.call(29, 44)) == ("sched_op.44", None)
    assert describe(domain.call(15)) == ("set_timer_op", None)
    assert describe(domain.call(88)) == ("hypercall_88", None)


# -- hostile arguments ------------------------------------------------------------------------------------------------

WORDS = st.one_of(
    st.integers(0, 32),
    st.sampled_from(range(0, 0x4000, 0x400)),  # where the arguments lie
    st.integers(0, RAM_SIZE + 0x1000),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([UNMAPPED, 0x7FF0, 0x7FFF, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, (1 << 64) - 1]),
)
NUMBERS = st.sampled_from(sorted(NAMES))
COMMANDS = {nr: sorted(call.ops) for nr, call in HYPERCALLS.items() if isinstance(call, Hypercall)}
CALLS = st.tuples(NUMBERS, st.booleans()).flatmap(
    lambda row: st.tuples(
        st.just(row[0]),
        st.just(row[1]),
        st.tuples(st.one_of(st.sampled_from(COMMANDS.get(row[0], [0, 1])), WORDS), *[WORDS] * 5),
    )
)


class Endless(Exception):
    """A call that went on for longer than the guest's memory has room for arguments."""


def bounded(domain: FakeDomain, nr: int, args: tuple[int, ...], *, wide: bool) -> int:
    checkpoints = 0

    def checkpoint() -> None:
        nonlocal checkpoints
        checkpoints += 1
        if checkpoints > 200:
            raise Endless

    try:
        return dispatch.dispatch(domain.call(nr, *args, wide=wide, checkpoint=checkpoint))
    except Endless:
        return 0  # the guest asked for much; what matters is that the domain could have been ended meanwhile


@pytest.mark.parametrize("is_pv", [False, True])
@settings(max_examples=100)
@given(
    calls=st.lists(CALLS, min_size=1, max_size=6),
    filling=st.binary(min_size=8, max_size=96),
    words=st.lists(WORDS, min_size=1, max_size=12),
)
def test_no_argument_does_more_than_return_a_number(
    is_pv: bool, calls: list[tuple[int, bool, tuple[int, ...]]], filling: bytes, words: list[int]
) -> None:
    with fake_domain(is_pv=is_pv) as domain:
        argument = b"".join(word.to_bytes(8, "little") for word in words)
        for gpa in range(0, 0x4000, 0x400):
            domain.memory.write(gpa, (filling if gpa & 0x400 else argument) * 2)
        for nr, wide, args in calls:
            if not wide:
                args = tuple(arg & 0xFFFF_FFFF for arg in args)
            result = bounded(domain, nr, args, wide=wide)
            assert isinstance(result, int)
            assert -(1 << 63) <= result < 1 << 63
        assert len(domain.memory.regions) < 100
