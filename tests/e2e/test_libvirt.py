# SPDX-License-Identifier: Apache-2.0
"""Domains of libvirt's: libvirt holds their monitor, runs their QEMU as a user of its own and in a sandbox, and
gets them back."""

import gzip
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from tests import conftest
from tests.conftest import Vmsieve, random_moments
from tests.lab import Qmp, QmpError, Serial, Unavailable, wait_until
from tests.lab.disks import SMALL, Ledger, chain, check_file_system, check_image, image
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


# ---- disks -----------------------------------------------------------------

@pytest.fixture(name="disks")
def fixture_disks(libvirt):
    """Where libvirt's user may read and write: a qcow2 and a raw image."""
    folder = libvirt.folder / "images"
    folder.mkdir()
    folder.chmod(0o755)
    yield [image(folder / "a.qcow2"), image(folder / "b.raw", form="raw")]
    if libvirt.state("db") != "shut off":
        libvirt.virsh("destroy", "db")
    libvirt.virsh("undefine", "db")
    shutil.rmtree(folder)


def start_on(libvirt, disks):
    return Ledger(libvirt.start("db", mem_mib=256, selfcheck=SMALL, disks=disks))


def files_of(saved, what="overlay"):
    return [pathlib.Path(disk[what]) for disk in saved["disks"]["disks"]]


def backed_by(path):
    return [pathlib.Path(file) for file in chain(path)][1:]


def is_on(libvirt, paths):
    """libvirt says so of the domain, and of what it starts it with the next time."""
    assert list(libvirt.disks_of("db").values()) == list(paths)
    assert list(libvirt.disks_of("db", "--inactive").values()) == list(paths)


def qemus_images(folder):
    """Images that the domain's QEMU has open."""
    open_files = [pathlib.Path(os.readlink(fd)) for fd in pathlib.Path(f"/proc/{qemu_of('db')}/fd").iterdir()]
    return {path.name for path in open_files if path.parent == folder}


def test_a_domain_comes_back_with_its_disks(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    saves = []
    for _ in range(2):
        saved = vmsieve.save("libvirt:db")
        assert saved["mode"] == "live" and saved["warnings"] == []
        print("pause", saved["pause"])
        saves.append(saved)
        assert libvirt.state("db") == "running"
        is_on(libvirt, files_of(saved))
        ledger.wait_rounds(2)
    assert files_of(saves[0], "image") == disks
    assert files_of(saves[1], "image") == files_of(saves[0])
    before = [path.read_bytes() for path in disks]
    files = set(disks[0].parent.iterdir())

    refused = vmsieve.fails("restore", saves[0]["checkpoint"])
    assert refused.code == 8 and "already active" in refused.stderr
    assert vmsieve.fails("restore", saves[0]["checkpoint"], "--disk-temporary").code == 7
    assert set(disks[0].parent.iterdir()) == files
    libvirt.virsh("destroy", "db")
    for saved in (saves[0], saves[1], saves[0]):
        report = vmsieve.json("restore", saved["checkpoint"])
        assert report["running"] and libvirt.state("db") == "running"
        made = [pathlib.Path(path) for path in report["disks"]]
        assert list(libvirt.disks_of("db").values()) == made
        assert [backed_by(path)[0] for path in made] == files_of(saved, "image")
        ledger.wait_rounds(3)
        if saved is saves[1]:  # a domain like any other
            again = vmsieve.save("libvirt:db")
            ledger.wait_rounds(1)
            assert files_of(again, "image") == made
            assert list(libvirt.disks_of("db").values()) == files_of(again)
        libvirt.virsh("destroy", "db")
    vmsieve.json("restore", again["checkpoint"])
    ledger.wait_rounds(3)
    assert before == [path.read_bytes() for path in disks]
    libvirt.virsh("destroy", "db")
    # What it was started with at first went on to the overlays, and so does the domain.
    libvirt.virsh("start", "db")
    is_on(libvirt, files_of(saves[1]))


def test_libvirt_merges_what_no_checkpoint_needs(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    saves = []
    for _ in range(4):
        saves.append(vmsieve.save("libvirt:db"))
        ledger.wait_rounds(1)
    left = list(saves)
    for number in (1, 2, 0):  # in the middle, the newest, the oldest
        left.remove(saves[number])
        assert vmsieve.json("rm", saves[number]["checkpoint"])["untidy_disks"] == []
        assert len(qemus_images(disks[0].parent)) == 2 * (len(left) + 1)
        is_on(libvirt, files_of(saves[3]))
        ledger.wait_rounds(1)
    restorable = left[0]["checkpoint"]
    again = vmsieve.save("libvirt:db")
    assert vmsieve.json("rm", again["checkpoint"])["untidy_disks"] == []  # the VM leaves the topmost
    is_on(libvirt, files_of(again, "image"))
    ledger.wait_rounds(2)
    libvirt.virsh("destroy", "db")
    vmsieve.json("restore", restorable)
    ledger.wait_rounds(3)
    libvirt.virsh("destroy", "db")


def test_a_domain_starts_after_merges_while_it_is_off(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    saves = [vmsieve.save("libvirt:db") for _ in range(4)]
    assert vmsieve.json("rm", saves[2]["checkpoint"])["untidy_disks"] == []  # libvirt writes the chain anew
    ledger.wait_rounds(1)
    libvirt.virsh("destroy", "db")
    for gone in ((1,), (0, 3)):
        assert vmsieve.json("rm", *(saves[number]["checkpoint"] for number in gone))["untidy_disks"] == []
        libvirt.virsh("start", "db")
        is_on(libvirt, files_of(saves[3]))
        libvirt.virsh("destroy", "db")
    assert set(disks[0].parent.iterdir()) == {*disks, *files_of(saves[3])}
    for path in files_of(saves[3]):
        check_file_system(path, libvirt.folder).unlink()


def test_the_domain_is_back_on_its_images(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    saves = [vmsieve.save("libvirt:db"), vmsieve.save("libvirt:db")]
    ledger.wait_rounds(1)
    assert vmsieve.json("rm", *(saved["checkpoint"] for saved in saves))["untidy_disks"] == []
    is_on(libvirt, disks)
    assert set(disks[0].parent.iterdir()) == set(disks)
    ledger.wait_rounds(2)
    libvirt.virsh("destroy", "db")
    check_image(disks[0], leaks=True)
    for path in disks:
        check_file_system(path, libvirt.folder).unlink()


def test_a_domain_that_takes_its_own_place_is_back_on_its_images(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    saved = vmsieve.save("libvirt:db")
    ledger.wait_rounds(1)
    libvirt.virsh("destroy", "db")
    back = vmsieve.json("restore", saved["checkpoint"], "--instead")
    assert "warnings" not in back and back["abandoned"] == [str(path) for path in files_of(saved)]
    is_on(libvirt, [pathlib.Path(path) for path in back["disks"]])
    ledger.wait_rounds(2)
    again = vmsieve.save("libvirt:db")
    assert vmsieve.json("rm", saved["checkpoint"])["untidy_disks"] == []
    is_on(libvirt, files_of(again))
    assert set(disks[0].parent.iterdir()) == {*disks, *files_of(again)}
    ledger.wait_rounds(1)
    assert vmsieve.json("rm", again["checkpoint"])["untidy_disks"] == []
    is_on(libvirt, disks)
    assert set(disks[0].parent.iterdir()) == set(disks)
    ledger.wait_rounds(2)
    libvirt.virsh("destroy", "db")
    libvirt.virsh("start", "db")
    is_on(libvirt, disks)


def test_a_save_that_is_killed_leaves_the_domain_and_its_disks(vmsieve, libvirt, disks):
    moments = random_moments()
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    started = time.monotonic()
    kept = vmsieve.save("libvirt:db")
    length = time.monotonic() - started
    for _ in range(40 if conftest.LONG else 4):
        process = vmsieve.start("save", "libvirt:db")
        time.sleep(moments.uniform(0.1, length))
        process.kill()
        process.wait()
        wait_until(lambda: libvirt.state("db") == "running", 15, "the domain running on")
        ledger.wait_rounds(1)
    done = [entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]]
    assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
    ledger.wait_rounds(1)
    images = {disk.name for disk in disks}
    assert len(qemus_images(disks[0].parent)) == 2 * (len(done) + 1) == len(list(disks[0].parent.iterdir()))
    libvirt.virsh("destroy", "db")
    for checkpoint in (kept["checkpoint"], done[-1]):
        vmsieve.json("restore", checkpoint)
        ledger.wait_rounds(3)
        libvirt.virsh("destroy", "db")
    assert images <= {path.name for path in disks[0].parent.iterdir()}


def test_a_merge_that_is_killed_goes_on_next_time(vmsieve, libvirt, disks):
    moments = random_moments()
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    for turn in range(20 if conftest.LONG else 2):
        saves = [vmsieve.save("libvirt:db")["checkpoint"] for _ in range(3)]
        ledger.wait_rounds(1)
        victim = saves.pop(2 if turn % 2 else moments.randrange(2))
        for _ in range(3):
            process = vmsieve.start("rm", victim)
            time.sleep(moments.uniform(0.05, 0.5))
            process.kill()
            process.wait()
        if victim in {entry["checkpoint"] for entry in vmsieve.json("log")["checkpoints"]}:
            vmsieve.run("rm", victim)
        assert vmsieve.json("disk", "tidy")["untidy_disks"] == []
        assert len(qemus_images(disks[0].parent)) == 6
        ledger.wait_rounds(1)
        assert vmsieve.json("rm", *saves)["untidy_disks"] == []
        is_on(libvirt, disks)
        assert set(disks[0].parent.iterdir()) == set(disks)
        ledger.wait_rounds(1)
    libvirt.virsh("destroy", "db")
    for path in disks:
        check_file_system(path, libvirt.folder).unlink()


def test_a_watch_brings_a_domain_with_disks_back(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    watch = vmsieve.start("watch", "libvirt:db", "--every", "1s", "--keep", "2", "--restart")
    try:
        ledger.wait_rounds(8)
        wait_until(lambda: len(checkpoints(vmsieve)) >= 2, 60, "two checkpoints")
        assert len(qemus_images(disks[0].parent)) <= 2 * 4
        before = qemu_of("db")
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: qemu_of("db") not in (None, before), 60, "another QEMU")
        ledger.wait_rounds(8)
        wait_until(lambda: libvirt.state("db") == "running", 5, "the domain runs")  # between two pauses
    finally:
        watch.terminate()
        watch.wait(30)


def test_copies_of_a_domains_disks(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks)
    ledger.wait_rounds(1)
    saved = vmsieve.save("libvirt:db", "--disk", "copy")
    assert saved["warnings"] == []
    is_on(libvirt, disks)
    ledger.wait_rounds(2)
    libvirt.virsh("destroy", "db")
    report = vmsieve.json("restore", saved["checkpoint"])
    made = [pathlib.Path(path) for path in report["disks"]]
    assert list(libvirt.disks_of("db").values()) == made
    assert [backed_by(path) for path in made] == [[], []]  # libvirt's user may not read the store
    ledger.wait_rounds(3)


def test_snapshots_in_a_domains_image(vmsieve, libvirt, disks):
    ledger = start_on(libvirt, disks[:1])
    ledger.wait_rounds(1)
    saved = vmsieve.save("libvirt:db", "--disk", "internal")
    ledger.wait_rounds(2)
    libvirt.virsh("destroy", "db")
    vmsieve.json("restore", saved["checkpoint"])
    ledger.wait_rounds(3)
