"""Assists that change what the hypervisor does by itself."""

from __future__ import annotations

from types import SimpleNamespace

from xenpy.domain.domain import Domain
from xenpy.domain.runstate import ThreadRunstate
from xenpy.hypercalls.vm_assist import VMASST_TYPE_runstate_update_flag
from xenpy.pv.time import SystemClock


def test_the_runstate_is_marked_while_it_changes_if_the_guest_asked_for_that() -> None:
    accounts = [ThreadRunstate(SystemClock()) for _ in range(2)]
    domain = SimpleNamespace(_vcpus=[SimpleNamespace(account=account) for account in accounts])
    assist = Domain.vm_assist
    assert assist.fset is not None
    for mask, marked in ((1 << VMASST_TYPE_runstate_update_flag, True), (1 << 2, False)):
        assist.fset(domain, mask)
        assert [account.update_flag for account in accounts] == [marked, marked]
