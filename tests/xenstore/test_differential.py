"""The same requests to Debian's C xenstored and to ours, in the same order, with the same answers and watch events.

XENPY_XENSTORE_SEQUENCES sets how many sequences each profile runs, XENPY_XENSTORE_SEED the first one's seed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import count, islice
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from xs_oracle import Oracle
from xs_random import SETUP, Comparison, Generator, Op, Runner
from xs_subject import Subject

from xenpy.abi.xs_wire import MsgType
from xenpy.pv.xenstore import Quotas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SEQUENCES = int(os.environ.get("XENPY_XENSTORE_SEQUENCES", "24"))
FIRST_SEED = int(os.environ.get("XENPY_XENSTORE_SEED", "0"))
SEQUENCE_LENGTH = 300
SHRINK_RUNS = 200


@dataclass(frozen=True)
class Profile:
    """What the sequences exercise."""

    lifecycle: bool = False
    transactions: bool = True
    options: tuple[str, ...] = ()
    quotas: Quotas | None = None


SMALL = Quotas(watches=4, transactions=2, transaction_nodes=8, permissions=3, node_size=300, path_max=12)
SMALL_OPTIONS = ("-W", "4", "-t", "2", "-Q", "transaction-nodes=8", "-A", "3", "-S", "300", "-M", "12")

PROFILES = {
    "requests": Profile(),
    "domains": Profile(lifecycle=True),
    "quotas": Profile(lifecycle=True, options=SMALL_OPTIONS, quotas=SMALL),
    # The quota on nodes alone, since within a transaction it is ours that counts right: see docs/xenstore.md.
    "nodes": Profile(transactions=False, options=("-E", "12"), quotas=Quotas(nodes=12)),
}


class Pair:
    """Both systems, fresh."""

    def __init__(self, profile: Profile, root: Path, stub: Path, folder: Path) -> None:
        folder.mkdir()
        self._oracle = Oracle(root, stub, folder, *profile.options)
        self._subject = Subject(profile.quotas)
        self._runners = Runner(self._oracle), Runner(self._subject)
        self._comparison = Comparison()

    def differ(self, ops: Iterable[Op], opened: Callable[[str, int], None]) -> tuple[list[Op], str | None]:
        """Run operations until the systems differ; return what was run, and the difference."""
        done = []
        for op in (*SETUP, *ops):
            done.append(op)
            difference = self._step(op, opened)
            if difference is not None:
                return done[len(SETUP) :], difference
        reference, ours = (runner.tree() for runner in self._runners)
        return done[len(SETUP) :], None if reference == ours else f"trees: {_unlike(reference, ours)}"

    def _step(self, op: Op, opened: Callable[[str, int], None]) -> str | None:
        reference, ours = (runner.run(op) for runner in self._runners)
        if not self._comparison.alike(op, reference, ours):
            return f"replies: xenstored {reference}, ours {ours}"
        if op.kind == MsgType.XS_TRANSACTION_START and reference is not None and reference[0] == op.kind:
            opened(op.actor, int(reference[1][:-1]))
        reference_events, our_events = (runner.events() for runner in self._runners)
        if reference_events != our_events:
            return f"events: {_unlike(reference_events, our_events)}"
        return None

    def close(self) -> None:
        self._oracle.close()
        self._subject.close()


def _unlike(reference: dict[Any, Any], ours: dict[Any, Any]) -> dict[Any, tuple[Any, Any]]:
    keys = reference.keys() | ours.keys()
    return {key: (reference.get(key), ours.get(key)) for key in keys if reference.get(key) != ours.get(key)}


class Bench:
    """Makes pairs and shrinks sequences that tell them apart."""

    def __init__(self, profile: Profile, root: Path, stub: Path, folder: Path) -> None:
        self._make = lambda number: Pair(profile, root, stub, folder / str(number))
        self._numbers = count()
        self._profile = profile

    def random(self, seed: int) -> tuple[list[Op], str | None]:
        generator = Generator(Random(seed), self._profile.lifecycle, self._profile.transactions)
        return self._run(islice(generator.ops(), SEQUENCE_LENGTH), generator.opened)

    def _run(self, ops: Iterable[Op], opened: Callable[[str, int], None]) -> tuple[list[Op], str | None]:
        pair = self._make(next(self._numbers))
        try:
            return pair.differ(ops, opened)
        finally:
            pair.close()

    def shrink(self, ops: list[Op], difference: str) -> tuple[list[Op], str]:
        """Drop operations as long as a difference of the same kind remains."""
        kind = difference.partition(":")[0]
        chunk, runs = len(ops) // 2, 0
        while chunk and runs < SHRINK_RUNS:
            start = 0
            while start < len(ops) and runs < SHRINK_RUNS:
                runs += 1
                done, found = self._run(ops[:start] + ops[start + chunk :], lambda _actor, _tx: None)
                if found is not None and found.startswith(kind):
                    ops, difference = done, found
                else:
                    start += chunk
            chunk //= 2
        return ops, difference


@pytest.mark.parametrize("name", PROFILES)
def test_answers_are_those_of_xenstored(name: str, xen_root: Path, stub: Path, tmp_path: Path) -> None:
    bench = Bench(PROFILES[name], xen_root, stub, tmp_path)
    for seed in range(FIRST_SEED, FIRST_SEED + SEQUENCES):
        ops, difference = bench.random(seed)
        if difference is not None:
            ops, difference = bench.shrink(ops, difference)
            steps = "\n".join(f"  {op}" for op in ops)
            pytest.fail(f"profile {name}, seed {seed}: {difference}\nafter\n{steps}", pytrace=False)
