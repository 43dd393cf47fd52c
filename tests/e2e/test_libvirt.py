# SPDX-License-Identifier: Apache-2.0
"""Domains of libvirt's: libvirt holds their monitor, runs their QEMU as a user of its own and in a sandbox, and
gets them back."""

import gzip
import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests import conftest
from tests.conftest import Vmsieve, random_moments
from tests.lab import Qmp, QmpError, Serial, Unavailable, wait_until
from tests.lab.libvirt import Libvirt

KILLS = 100 if conftest.LONG else 8


class VmsieveBeside(Vmsieve):
    """The command where its libvirt can be seen."""

    def __init__(self, store, libvirt):
        super().__init__(store)
        self.inside = libvirt.inside

    def start(self, *arguments):
        return subprocess.Popen([*self.inside, str(conftest.BINARY), *map(str, arguments)], env=self.env,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, *arguments, timeout=180):
        result = subprocess.run([*self.inside, str(conftest.BINARY), *map(str, arguments)], env=self.env, text=True,
                                capture_output=True, timeout=timeout, check=False)
        if result.returncode != 0:
            raise conftest.Failed(result)
        return result.stdout


@pytest.fixture(scope="module", name="libvirt",
                params=[pytest.param(None, id="system"), pytest.param("backports", marks=pytest.mark.matrix)])
def fixture_libvirt(request):
    try:
        with Libvirt(request.param) as libvirt:
            yield libvirt
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", name="domain")
def fixture_domain(libvirt):
    """A domain that checks itself; each test leaves it running."""
    return libvirt.start("web1", selfcheck={"churn_mib": 64, "anon_mib": 24})


@pytest.fixture(name="vmsieve")
def fixture_vmsieve(tmp_path, libvirt):
    return VmsieveBeside(tmp_path / "store", libvirt)


def helpers():
    return subprocess.run(["pgrep", "-x", "vmsieve-libvirt"], capture_output=True, text=True, check=False).stdout.split()


def checkpoints(vmsieve):
    try:
        return vmsieve.json("log")["checkpoints"]
    except conftest.Failed:
        return []  # no store yet


def test_live_and_incremental_saves_of_a_domain_that_libvirt_gets_back(vmsieve, libvirt, domain):
    live = vmsieve.save("libvirt:web1")
    assert live["mode"] == "live" and live["introspection"]["used"], live
    assert live["pages"]["free"] > 0
    vmsieve.save("libvirt:web1", "--incremental")
    increment = vmsieve.save("libvirt:web1", "--incremental")
    assert increment["stored_bytes"] < live["stored_bytes"] / 2
    vmsieve.save("libvirt:web1", "--paused")
    domain.wait_rounds(2)
    assert libvirt.state("web1") == "running"
    assert "web1" in vmsieve.run("inspect", "libvirt:web1")
    vmsieve.run("untrack", "libvirt:web1")
    assert helpers() == []

    active = vmsieve.fails("restore", increment["checkpoint"])
    assert active.code == 8 and "already active" in active.stderr
    # libvirt has QEMU load a whole stream.
    assert vmsieve.fails("restore", live["checkpoint"], "--lazy").code == 7

    libvirt.virsh("destroy", "web1")
    report = vmsieve.json("restore", increment["checkpoint"])
    assert report["vm"] == "libvirt:web1" and report["running"]
    assert libvirt.state("web1") == "running"
    domain.wait_rounds(4)
    # A domain like any other.
    again = vmsieve.save("libvirt:web1")
    assert again["introspection"]["used"]
    libvirt.virsh("destroy", "web1")
    vmsieve.json("restore", again["checkpoint"], "--stopped")
    assert libvirt.state("web1") == "paused"
    libvirt.virsh("resume", "web1")
    domain.wait_rounds(4)


def test_virsh_restores_an_export(vmsieve, libvirt, domain, tmp_path):
    saved = vmsieve.save("libvirt:web1")
    image = libvirt.folder / "image"
    exported = vmsieve.json("export", saved["checkpoint"], "--format", "libvirt", "--output", image)
    assert exported["bytes"] == image.stat().st_size
    # As in an image of libvirt's own, also what holds zeros is in it: a domain's memory may be an old file.
    stream = vmsieve.json("export", saved["checkpoint"], "--format", "qemu", "--output", tmp_path / "stream")
    assert exported["bytes"] - stream["bytes"] > 8 * (saved["pages"]["free"] + saved["pages"]["zero"])
    # libvirt's own reading of the head.
    assert "<name>web1</name>" in libvirt.virsh("save-image-dumpxml", image)
    libvirt.virsh("destroy", "web1")
    libvirt.virsh("restore", image)
    assert libvirt.state("web1") == "running"
    domain.wait_rounds(4)
    image.unlink()


def test_killed_at_random_moments_the_domain_runs_on(vmsieve, libvirt, domain):
    moments = random_moments()
    started = time.monotonic()
    vmsieve.save("libvirt:web1", "--paused")
    length = time.monotonic() - started
    for turn in range(KILLS):
        process = vmsieve.start("save", "libvirt:web1", "--paused" if turn % 2 else "--live")
        time.sleep(moments.uniform(0, length))
        process.kill()  # nsenter has become the command
        process.wait()
        wait_until(lambda: libvirt.state("web1") == "running", 15, "the domain running on")
    domain.wait_rounds(3)
    wait_until(lambda: not helpers(), 20, "the end of what passed on to libvirt")


def test_who_passes_on_to_libvirt_killed_the_domain_runs_on(vmsieve, libvirt, domain):
    """Killed in the pause, the one process through which the guest could be started again."""
    watch = vmsieve.start("watch", "libvirt:web1", "--every", "1h")
    try:
        wait_until(lambda: checkpoints(vmsieve), 60, "a checkpoint")
        socket = next(pathlib.Path("/run/vmsieve").glob(f"libvirt-{watch.pid}-*.qmp"))
        with Qmp(socket) as qmp:
            qmp.execute("stop")
        assert libvirt.state("web1") == "paused"
        connected = [pid for pid in helpers()
                     if not pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").strip()]
        for pid in connected:
            os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: libvirt.state("web1") == "running", 15, "the domain running on")
        assert not socket.exists()
    finally:
        watch.terminate()
        watch.wait(30)
    domain.wait_rounds(2)


def test_libvirtd_killed_in_the_pause_the_domain_runs_on_when_it_is_back(vmsieve, libvirt, domain):
    watch = vmsieve.start("watch", "libvirt:web1", "--every", "1h")
    try:
        wait_until(lambda: checkpoints(vmsieve), 60, "a checkpoint")
        socket = next(pathlib.Path("/run/vmsieve").glob(f"libvirt-{watch.pid}-*.qmp"))
        with Qmp(socket) as qmp:
            qmp.execute("stop")
            assert libvirt.state("web1") == "paused"
            libvirt.kill_daemon()
            with pytest.raises(QmpError):
                qmp.execute("query-status")
        libvirt.start_daemon()
        wait_until(lambda: libvirt.state("web1") == "running", 30, "the domain running on")
    finally:
        watch.terminate()
        watch.wait(30)
    domain.wait_rounds(2)
    wait_until(lambda: not helpers(), 20, "the end of what passed on to libvirt")


def qemu_of(name):
    """Its process; none when there is none."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"guest={name},debug-threads=on" in (process / "cmdline").read_bytes().decode().split("\0"):
                return int(process.name)
        except OSError:
            continue
    return None


def plain_command(libvirt, name):
    """The domain's QEMU command line without what libvirt passed on as descriptors, and its secret."""
    arguments = pathlib.Path("/proc", str(qemu_of(name)), "cmdline").read_bytes().decode().split("\0")[:-1]
    command, at = arguments[:1], 1
    while at < len(arguments):
        option = arguments[at]
        value = arguments[at + 1] if at + 1 < len(arguments) and not arguments[at + 1].startswith("-") else None
        at += 1 if value is None else 2
        if option in ("-add-fd", "-mon", "-sandbox") or "masterKey0" in str(value) or "charmonitor" in str(value):
            continue
        if value is not None and "/dev/fdset" in value:
            value = f"file,id=charserial0,path={libvirt.folder}/{name}.imported"
        command += [option] if value is None else [option, value]
    return command


@pytest.mark.parametrize("form", ["raw", pytest.param("gzip", marks=pytest.mark.matrix)])
def test_images_of_virsh_save_become_checkpoints(vmsieve, libvirt, domain, tmp_path, form):
    if libvirt.state("web1") != "running":
        libvirt.virsh("start", "web1")
        domain.wait_for("selfcheck: ready .*\n", 180)
    command = plain_command(libvirt, "web1")
    image = libvirt.folder / f"saved-{form}"
    domain.wait_rounds(2)
    libvirt.virsh("save", "web1", image)
    if form == "gzip":
        # As libvirt writes it with save_image_format = "gzip".
        whole = image.read_bytes()
        head = 92 + int.from_bytes(whole[20:24], "little")
        image.write_bytes(whole[:28] + (1).to_bytes(4, "little") + whole[32:head] + gzip.compress(whole[head:], 1))

    # By libvirt, which gets it back.
    imported = vmsieve.json("import", image)
    assert imported["import"]["format"] == "libvirt" and imported["introspection"]["used"], imported
    assert imported["import"]["ratio"] > 1
    print(f'{form}: {imported["import"]["ratio"]:.1f} times smaller')
    assert libvirt.state("web1") == "shut off"
    vmsieve.json("restore", imported["checkpoint"])
    assert libvirt.state("web1") == "running"
    domain.wait_rounds(4)
    libvirt.virsh("destroy", "web1")

    # By a QEMU of its own.
    imported = vmsieve.json("import", image, "--", *command)
    assert imported["import"]["format"] == "libvirt" and imported["introspection"]["used"], imported
    report = vmsieve.json("restore", imported["checkpoint"], "--omitted-fill", "0x5a")
    vmsieve.pids.append(report["pid"])
    Serial(libvirt.folder / "web1.imported").wait_rounds(4, timeout=180)
    vmsieve.kill_restored()

    cut = libvirt.folder / "cut"
    for length in (50, 200, image.stat().st_size // 2):
        cut.write_bytes(image.read_bytes()[:length])
        assert vmsieve.fails("import", cut, "--", *command).code in (6, 7)
        assert vmsieve.fails("import", cut).code in (6, 8)
        assert libvirt.state("web1") == "shut off"
    assert len(vmsieve.json("log")["checkpoints"]) == 2
    for path in (cut, image):
        path.unlink()
    libvirt.virsh("start", "web1")
    domain.wait_for("selfcheck: ready .*\n", 180)


def test_a_watch_brings_the_domain_back(vmsieve, libvirt, domain):
    watch = vmsieve.start("watch", "libvirt:web1", "--every", "1s", "--keep", "3", "--restart")
    try:
        wait_until(lambda: len(checkpoints(vmsieve)) >= 2, 60, "two checkpoints")
        before = qemu_of("web1")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: qemu_of("web1") not in (None, before), 60, "another QEMU")
        domain.wait_rounds(3)
        assert libvirt.state("web1") == "running"
    finally:
        watch.terminate()
        watch.wait(30)
    assert libvirt.state("web1") == "running"


def test_it_is_listed_and_found_by_other_names(vmsieve, libvirt, domain):
    assert domain is not None and libvirt.state("web1") == "running"
    [listed] = [vm for vm in vmsieve.json("ls")["vms"] if vm["name"] == "libvirt:web1"]
    assert 0 < listed["used_bytes"] < listed["total_bytes"] and listed["running"]
    for name in ("web1", f'pid:{listed["pid"]}'):
        assert vmsieve.json("inspect", name)["kernel"] == listed["kernel"]


def test_names_that_are_none(vmsieve, libvirt, domain):
    assert domain is not None
    unknown = vmsieve.fails("save", "libvirt:web2")
    assert unknown.code == 3 and "web2" in unknown.stderr
    libvirt.virsh("destroy", "web1")
    ended = vmsieve.fails("save", "libvirt:web1")
    assert ended.code == 3 and "does not run" in ended.stderr
