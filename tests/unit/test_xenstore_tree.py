"""Nodes, permissions and paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from xs_rig import OK, Peer, error

from xenpy.abi.xs_wire import MsgType
from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore import Perm, Xenstore
from xenpy.pv.xenstore.control import find_problems
from xenpy.pv.xenstore.paths import absolute, atoi, parent
from xenpy.pv.xenstore.tree import Access, Caller

HOME = "/local/domain/5"


@pytest.mark.parametrize(("raw", "path"), [(b"/a/b-c_d@1", "/a/b-c_d@1"), (b"/", "/"), (b"x/y", "/local/domain/5/x/y")])
def test_well_formed_paths(raw: bytes, path: str) -> None:
    assert absolute(raw, HOME) == path


@pytest.mark.parametrize(
    "raw", [b"", b"//", b"/a//b", b"/a/", b"a/", b"/a b", b"/a.b", b"/\xff", b"@x", b"/a\n", b"/" + b"x" * 3072]
)
def test_malformed_paths(raw: bytes) -> None:
    with pytest.raises(XenError) as caught:
        absolute(raw, HOME)
    assert caught.value.errno is Errno.EINVAL


def test_the_quota_on_paths_does_not_count_the_domain_s_home() -> None:
    assert absolute(b"x" * 10, HOME, 10)
    assert absolute(b"/local/domain/77/" + b"x" * 10, HOME, 10)
    for raw in (b"x" * 11, b"/" + b"x" * 10):
        with pytest.raises(XenError):
            absolute(raw, HOME, 10)


@pytest.mark.parametrize(("path", "above"), [("/a/b", "/a"), ("/a", "/"), ("/", "/")])
def test_parents(path: str, above: str) -> None:
    assert parent(path) == above


@pytest.mark.parametrize(("raw", "number"), [(b"12", 12), (b" -3x", -3), (b"x", 0), (b"", 0), (b"+4", 4)])
def test_numbers_are_read_as_atoi_does(raw: bytes, number: int) -> None:
    assert atoi(raw) == number


@pytest.mark.parametrize("text", ["n0", "r5", "w65535", "b7"])
def test_permissions_survive_a_round_trip(text: str) -> None:
    assert str(Perm.parse(text.encode())) == text


@pytest.mark.parametrize("text", [b"", b"n", b"x5", b"5", b"nx", b"N5"])
def test_malformed_permissions(text: bytes) -> None:
    with pytest.raises(XenError):
        Perm.parse(text)


@pytest.mark.parametrize(
    ("perms", "access"),
    [
        ("n5", Access.READ | Access.WRITE | Access.OWNER),
        ("r0", Access.READ),
        ("n0 r5", Access.READ),
        ("b0 n5", Access.NONE),
        ("n0 w6 b5", Access.READ | Access.WRITE),
        ("n0 w5 b5", Access.WRITE),
        ("w0 r6", Access.WRITE),
    ],
)
def test_the_first_matching_entry_decides(perms: str, access: Access) -> None:
    parsed = tuple(Perm.parse(text.encode()) for text in perms.split())
    assert Caller(5, privileged=False).access(parsed) == access


def test_a_device_model_has_its_target_s_rights_too() -> None:
    caller = Caller(9, privileged=False)
    caller.target = 5
    assert caller.access((Perm(5, Access.NONE),)) & Access.OWNER
    assert caller.access((Perm(0, Access.NONE), Perm(5, Access.READ))) == Access.READ


def test_write_creates_parents_with_empty_values(dom0: Peer) -> None:
    dom0.write("/a/b/c", b"\0binary\xff")
    assert dom0.read("/a/b/c") == b"\0binary\xff"
    assert dom0.read("/a/b") == b""
    assert dom0.ok(MsgType.XS_DIRECTORY, "/a") == b"b\0"


def test_mkdir_leaves_an_existing_value(dom0: Peer) -> None:
    dom0.write("/a", b"x")
    assert dom0.ok(MsgType.XS_MKDIR, "/a") == OK
    assert dom0.read("/a") == b"x"


def test_children_are_listed_in_the_order_of_creation(dom0: Peer) -> None:
    for name in ("z", "a", "m"):
        dom0.write(f"/d/{name}", b"")
    assert dom0.ok(MsgType.XS_DIRECTORY, "/d") == b"z\0a\0m\0"


def test_rm_removes_all_below_and_forgives_absence_but_not_of_the_parent(dom0: Peer) -> None:
    dom0.write("/a/b/c", b"x")
    assert dom0.ok(MsgType.XS_RM, "/a") == OK
    assert dom0.ask(MsgType.XS_READ, "/a/b/c") == error(Errno.ENOENT)
    assert dom0.ok(MsgType.XS_RM, "/a") == OK
    assert dom0.ask(MsgType.XS_RM, "/a/b") == error(Errno.ENOENT)
    assert dom0.ask(MsgType.XS_RM, "/") == error(Errno.EINVAL)


def test_a_guest_owns_what_it_creates_and_inherits_the_rest(guest: Peer, store: Xenstore) -> None:
    store.set_perms(f"{HOME}/data", ["r0", "b5", "w6"])
    guest.write("data/x/y", b"1")
    assert [str(perm) for perm in store.get_perms(f"{HOME}/data/x/y")] == ["r5", "b5", "w6"]
    store.write(f"{HOME}/data/x/z", "by dom0")
    assert [str(perm) for perm in store.get_perms(f"{HOME}/data/x/z")] == ["r5", "b5", "w6"]


def test_absence_is_told_only_to_who_may_look_at_the_parent(guest: Peer) -> None:
    assert guest.ask(MsgType.XS_READ, "nothing/here") == error(Errno.ENOENT)
    assert guest.ask(MsgType.XS_READ, "/nothing") == error(Errno.EACCES)
    assert guest.ask(MsgType.XS_WRITE, "nothing", raw=b"x") == error(Errno.EACCES)
    assert guest.ask(MsgType.XS_MKDIR, "nothing") == error(Errno.EACCES)
    assert guest.ask(MsgType.XS_RM, "nothing") == error(Errno.EACCES)


def test_only_owners_set_permissions_and_only_dom0_gives_nodes_away(guest: Peer, dom0: Peer, store: Xenstore) -> None:
    store.add_domain(6)
    guest.write("data/x", b"1")
    assert guest.ok(MsgType.XS_SET_PERMS, "data/x", "b5", "r6") == OK
    assert guest.ok(MsgType.XS_GET_PERMS, "data/x") == b"b5\0r6\0"
    assert guest.ask(MsgType.XS_SET_PERMS, "data/x", "b6") == error(Errno.EPERM)
    assert guest.ask(MsgType.XS_SET_PERMS, HOME, "b5") == error(Errno.EACCES)
    assert dom0.ok(MsgType.XS_SET_PERMS, f"{HOME}/data/x", "n6") == OK
    assert guest.ask(MsgType.XS_READ, "data/x") == error(Errno.EACCES)
    assert dom0.ask(MsgType.XS_SET_PERMS, "/tool", "n99") == error(Errno.ENOENT)
    assert dom0.ask(MsgType.XS_SET_PERMS, "/tool") == error(Errno.EINVAL)


def test_long_directories_are_read_in_parts(dom0: Peer, store: Xenstore) -> None:
    names = [f"child-{number:04}" for number in range(1000)]
    for name in names:
        store.mkdir(f"/d/{name}")
    assert dom0.ask(MsgType.XS_DIRECTORY, "/d") == error(Errno.E2BIG)
    found, generations, offset = b"", set(), 0
    while True:
        payload = dom0.ok(MsgType.XS_DIRECTORY_PART, "/d", str(offset))
        assert len(payload) <= 4096
        generation, part = payload.split(b"\0", 1)
        generations.add(generation)
        if part.endswith(b"\0\0") or part == b"\0":
            found += part[:-1]
            break
        found += part
        offset += len(part)
    assert found.decode().split("\0")[:-1] == names
    assert len(generations) == 1
    store.write("/d/child-0001", "x")
    assert dom0.ok(MsgType.XS_DIRECTORY_PART, "/d", "0").startswith(generations.pop())
    store.rm("/d/child-0001")
    assert not dom0.ok(MsgType.XS_DIRECTORY_PART, "/d", "0").startswith(generation + b"\0")


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))


class TreeModel(RuleBasedStateMachine):
    """The store against a dict of paths."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Xenstore()
        self.model = {"/": b"", "/tool": b"", "/tool/xenstored": b""}

    def _create(self, path: str, value: bytes) -> None:
        self.model[path] = value
        while path != "/":
            path = parent(path)
            self.model.setdefault(path, b"")

    @rule(path=PATHS, value=st.binary(max_size=5))
    def write(self, path: str, value: bytes) -> None:
        self.store.write(path, value)
        self._create(path, value)

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        self.store.mkdir(path)
        self._create(path, self.model.get(path, b""))

    @rule(path=PATHS)
    def rm(self, path: str) -> None:
        self.store.rm(path)
        self.model = {name: value for name, value in self.model.items() if not f"{name}/".startswith(f"{path}/")}

    @rule(changes=st.lists(st.tuples(PATHS, st.binary(max_size=3)), max_size=4), commit=st.booleans())
    def transact(self, changes: list[tuple[str, bytes]], commit: bool) -> None:
        transaction = self.store.transaction()
        for path, value in changes:
            transaction.write(path, value)
            assert transaction.read_bytes(path) == value
        if commit:
            with transaction:
                pass
            for path, value in changes:
                self._create(path, value)

    @invariant()
    def same(self) -> None:
        found = {path: self.store.read_bytes(path) for path, _ in self.store.walk()}
        assert found == self.model
        assert find_problems(self.store) == []


TestTreeModel = TreeModel.TestCase


@given(st.binary(max_size=40))
def test_any_path_is_accepted_or_einval(raw: bytes) -> None:
    try:
        path = absolute(raw, HOME)
    except XenError as refusal:
        path = refusal.errno.name
    assert path == "EINVAL" or (path.startswith("/") and "//" not in path)
