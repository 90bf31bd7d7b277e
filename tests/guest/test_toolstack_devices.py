"""The xl-shaped commands about devices, screens and sizes, on guests that run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from toolstack_rig import TIMEOUT_S, Toolstack

if TYPE_CHECKING:
    from pathlib import Path


def test_a_screenshot_takes_a_screen(tools: Toolstack, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    for name, settings, reason in (
        ("blind", (), "has no framebuffer 0: give it one with vfb="),
        ("dark", ('vfb=["vnc=0"]',), "no driver is connected to framebuffer 0"),
    ):
        tools.create(name, settings=settings)
        with tools.popen("screenshot", name, str(picture), program="xenpy") as process:
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode != 0
        assert reason in err.decode()
    assert not picture.exists()


def test_what_is_asked_of_the_kernel_is_there_for_it(tools: Toolstack) -> None:
    tools.create("x", settings=("maxmem=32", "maxvcpus=2"))
    for command in (
        ["mem-set", "x", "24m"],
        ["vcpu-set", "x", "2"],
        ["sysrq", "x", "s"],
        ["shutdown", "x"],
        ["reboot", "x"],
    ):
        tools.ok(*command)
    assert [line.split()[:3] for line in tools.ok("vcpu-list", "x").splitlines()[1:]] == [
        ["x", "1", "0"],
        ["x", "1", "1"],
    ]
    assert tools.ok("uptime", "x").splitlines()[1].split()[:2] == ["x", "1"]
    assert "x" in tools.ok("top", "-i", "2", "-d", "0.1")


def test_disks_come_and_go(tools: Toolstack, tmp_path: Path) -> None:
    image, other = tmp_path / "disk", tmp_path / "other"
    image.write_bytes(bytes(1 << 20))
    other.write_bytes(bytes(1 << 20))
    tools.create("x")
    tools.ok("block-attach", "x", f"{image},raw", "xvdb,rw")
    assert tools.ok("block-list", "x").splitlines()[1].split()[:4] == ["51728", "0", "1", "1"]
    (config,) = json.loads(tools.ok("list", "-l", "x"))
    assert config["config"]["disks"][0]["pdev_path"] == str(image)
    assert "exists already" in tools.xl("block-attach", "x", f"{other},raw,xvdb,rw").err
    os.truncate(image, 3 << 20)
    assert tools.ok("block-resize", "x", "xvdb") == f"{3 << 20}\n"
    assert tools.ok("block-resize", "x", "xvdb", "4") == f"{4 << 20}\n"
    assert "made larger only" in tools.xl("block-resize", "x", "xvdb", "1").err
    assert image.stat().st_size == 4 << 20
    tools.ok("block-detach", "x", "xvdb")
    assert len(tools.ok("block-list", "x").splitlines()) == 1
    assert "disks" not in json.loads(tools.ok("list", "-l", "x"))[0]["config"]


def test_a_medium_is_put_into_a_drive_and_taken_out(tools: Toolstack, tmp_path: Path) -> None:
    image, other = tmp_path / "disc", tmp_path / "other"
    image.write_bytes(bytes(1 << 20))
    other.write_bytes(bytes(1 << 20))
    tools.create("x")
    tools.ok("block-attach", "x", "vdev=xvdc", "devtype=cdrom", "access=r", "target=")
    tools.ok("block-attach", "x", f"{other},raw,xvdb,rw")

    def disks() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(tools.ok("list", "-l", "x"))[0]["config"]["disks"]
        return found

    assert disks()[0]["format"] == "empty"
    assert tools.ok("cd-insert", "x", "xvdc", str(image)) == ""
    assert (disks()[0]["pdev_path"], disks()[0]["format"]) == (str(image), "raw")
    assert tools.ok("cd-eject", "x", "51744") == ""
    assert disks()[0]["format"] == "empty"
    assert "is no CD drive" in tools.xl("cd-insert", "x", "xvdb", str(image)).err
    assert "is no CD drive" in tools.xl("cd-eject", "x", "xvdb").err
    assert "has no vbd xvdz" in tools.xl("cd-insert", "x", "xvdz", str(image)).err
    assert "there is no such file" in tools.xl("cd-insert", "x", "xvdc", "/no/such/disc").err
    assert "cd-eject takes out" in tools.xl("cd-insert", "x", "xvdc", "").err
    assert [disk["vdev"] for disk in disks()] == ["xvdc", "xvdb"]
