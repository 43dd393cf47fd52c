# SPDX-License-Identifier: Apache-2.0
"""A QEMU guest that runs selfcheck (tests/guests)."""

import itertools
import os
import pathlib
import shutil
import subprocess
import tempfile

from . import host
from .qmp import Qmp
from .serial import Serial

LAB_QEMUS = ("5.2", "10.0", "newest")
MACHINES = ("q35", "pc", "microvm", "virt")
ARCHES = ("x86_64", "aarch64")
MEMORIES = ("plain", "unreserved", "memfd", "file", "file-private", "hugetlb", "numa", "numa4")

_numbers = itertools.count(1)


class Guest:
    """One QEMU with one guest; a context manager that leaves nothing behind.

    qemu       '7.2' (the system's), '5.2', '10.0', 'newest' (the lab's) or a path
    arch       'x86_64' or 'aarch64'; the latter knows the kernels '6.1', '16k' (pages of
               16 KiB) and 'newest', and has no drivers
    machine    any -machine: 'q35', 'pc', 'microvm', 'virt', also with options after a
               comma; None: the usual one of the architecture
    memory     'plain' anonymous; 'unreserved' the same, and may be more than the host
               has, as long as it is not touched; 'memfd' shared memfd; 'file' shared and 'file-private'
               private file; 'hugetlb' shared memfd of huge pages; 'numa' and 'numa4' two
               and four nodes, a shared memfd each
    kernel     a kernel of the lab ('6.1', '6.12', ...), a path, or None: the guest
               stays in its firmware, which also runs where Linux does not
    selfcheck  parameters of the workload, as {'busy': 1, 'churn_mib': 512}
    drivers    with the kernel's virtio drivers (block, balloon, mem) loaded. selfcheck
               watches that the content of /dev/vda, if there is one, stays as it is
    append     more for the kernel command line
    hook       a shell script that the guest runs before selfcheck
    files      {path in the guest: path of a file on the host}, more for its initramfs
    reboots    the guest may reboot; else QEMU ends when it tries
    accel      an -accel argument. The default runs all vCPUs in one host thread: before QEMU 8.1
               (commit deba78709a, "Always lock pages before translation") a thread may keep the
               translation of code that another vCPU has just patched, and kernels that patch
               their branches then panic now and then
    extra      more QEMU arguments
    cpu        a -cpu argument; None: one that the guest runs well on
    vga        with the machine's default VGA, or (False) without any
    folder     where its sockets and files go; the caller's to remove. Default: a
               folder of its own, removed at the end of the `with`
    detached   the guest outlives this process
    """

    def __init__(self, qemu="7.2", arch="x86_64", machine=None, memory="plain", mem_mib=1024, smp=2,
                 kernel="6.1", append="", selfcheck=None, drivers=False, extra=(),
                 accel="tcg,thread=single", cpu=None, name=None, vga=False, folder=None, detached=False,
                 hook="", files=None, reboots=False):
        if memory not in MEMORIES:
            raise ValueError(f'memory={memory!r} is none of {", ".join(MEMORIES)}')
        if arch not in ARCHES or (drivers and arch != "x86_64"):
            raise ValueError(f"arch={arch!r}, drivers={drivers!r}: no such guest")
        self.arch, self.machine = arch, machine or ("q35" if arch == "x86_64" else "virt,gic-version=3")
        self.qemu, self.memory = qemu, memory
        self.mem_mib, self.smp, self.kernel, self.accel = mem_mib, smp, kernel, accel
        self.append, self.selfcheck, self.extra = append, dict(selfcheck or {}), list(extra)
        self.cpu = cpu or self._default_cpu()
        self.name = name or f"lab-{os.getpid()}-{next(_numbers)}"
        self.drivers, self.vga, self.detached = drivers, vga, detached
        self.hook, self.files, self.reboots = hook, dict(files or {}), reboots

        self._own_folder = folder is None
        self.folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="vmsieve-lab-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.qmp_path = self.folder / "qmp"            # for the tool under test
        self.test_qmp_path = self.folder / "test-qmp"  # for the test's own use
        self.serial_path = self.folder / "serial"
        self.log_path = self.folder / "qemu.log"
        self.serial = Serial(self.serial_path)
        self._process = None
        self._monitor = None
        self._hugepages = None

    # ---- life ----------------------------------------------------------

    def start(self):
        """Starts QEMU; returns when its monitors accept connections."""
        command = self.command()
        if self.memory == "hugetlb":
            self._hugepages = host.HostHugepages(self.mem_mib)
        with open(self.log_path, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=self.detached,
                preexec_fn=None if self.detached else host.die_with_parent)

        def listening():
            self.check_alive()
            return self.qmp_path.exists() and self.test_qmp_path.exists()
        host.wait_until(listening, 20, f"{self.name}: QMP sockets")
        return self

    def kill(self):
        """SIGKILL, by process id. Its files and huge pages stay, for a restored QEMU."""
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        if self._process:
            self._process.kill()
            self._process.wait()

    def clean_up(self):
        """Ends QEMU and gives back what kill() keeps."""
        self.kill()
        if self._hugepages:
            self._hugepages.release()
            self._hugepages = None
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        try:
            return self if self._process else self.start()
        except BaseException:
            self.clean_up()
            raise

    def __exit__(self, *_):
        self.clean_up()

    @property
    def pid(self):
        return self._process.pid

    def check_alive(self):
        """Raises with QEMU's own words when QEMU has ended."""
        status = self._process.poll()
        if status is not None:
            words = self.log_path.read_text(errors="replace").strip()
            raise RuntimeError(f"{self.name}: QEMU ended with status {status}: {words}")

    # ---- watching ------------------------------------------------------

    def wait_ready(self, timeout=180):
        """Waits until selfcheck has churned and holds its memory: (total, free, used) KiB."""
        self.serial.wait_for("selfcheck: ready .*\n", timeout, self.check_alive)
        return self.serial.ready()

    def wait_rounds(self, count, timeout=120):
        """Waits until selfcheck has verified `count` more rounds."""
        return self.serial.wait_rounds(count, timeout, self.check_alive)

    @property
    def monitor(self):
        """The test's own monitor, connected at its first use."""
        if not self._monitor:
            self._monitor = Qmp(self.test_qmp_path)
        return self._monitor

    def qmp(self):
        """A connection to the same monitor that the caller closes: `with guest.qmp() as qmp`."""
        if self._monitor:
            raise RuntimeError("guest.monitor is connected, and QEMU serves one client at a time")
        return Qmp(self.test_qmp_path)

    def memory_path(self):
        """Guest RAM as a file that can be opened; only where RAM is one shared file."""
        if self.memory == "file":
            return self.folder / "memory"
        if self.memory not in ("memfd", "hugetlb"):
            raise ValueError(f"memory={self.memory!r} is not one shared file")
        for descriptor in pathlib.Path(f"/proc/{self.pid}/fd").iterdir():
            if os.readlink(descriptor).startswith("/memfd:memory-backend-memfd"):
                return descriptor
        raise FileNotFoundError(f"QEMU {self.pid} has no memory-backend-memfd open")

    # ---- the command line ----------------------------------------------

    def command(self):
        """QEMU's command line, as a list."""
        machine, memory_options = self._memory_options()
        return [
            str(self.qemu_path()), "-name", self.name,
            "-machine", machine, "-accel", self.accel, *(["-cpu", self.cpu] if self.cpu else []),
            "-smp", str(self.smp), "-m", str(self.mem_mib), *memory_options,
            "-no-user-config", *self._display_options(), *([] if self.reboots else ["-no-reboot"]),
            "-serial", f"file:{self.serial_path}",
            "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
            "-qmp", f"unix:{self.test_qmp_path},server=on,wait=off",
            *self._kernel_options(), *self.extra,
        ]

    def qemu_path(self):
        if self.qemu == "7.2":
            return f"/usr/bin/qemu-system-{self.arch}"
        if self.qemu == "10.0" and self.arch == "aarch64":
            return host.lab("qemu-10.0-arm64") / "qemu-10.0-arm64" / "qemu-10.0"
        if self.qemu in LAB_QEMUS:
            return host.lab(f"qemu-{self.qemu}") / f"qemu-{self.qemu}" / f"qemu-{self.qemu}"
        return self.qemu

    def _default_cpu(self):
        if self.arch == "aarch64":
            return "cortex-a57"  # the machine's own default has 32 bits
        # QEMU 7.2 emulates cmpxchg16b with flags that may be garbage. The slab
        # allocator of kernels from 6.6 on branches on them at once: more than
        # half of the boots of 6.12 ended in a double fault, none without cx16.
        return "qemu64,-cx16" if self.qemu in ("5.2", "7.2") and self.accel.startswith("tcg") else None

    def _display_options(self):
        # -nodefaults takes the NIC, CD-ROM and VGA that a bare QEMU would add.
        options = ["-nodefaults", "-display", "none"]
        return options + ["-vga", "std"] if self.vga else options

    def _memory_options(self):
        """The -machine argument, and the options that say what backs the RAM."""
        size, folder_file = f"size={self.mem_mib}M", self.folder / "memory"
        backend = {
            "unreserved": f"memory-backend-ram,id=ram0,{size},reserve=off",
            "memfd": f"memory-backend-memfd,id=ram0,{size},share=on",
            "hugetlb": f"memory-backend-memfd,id=ram0,{size},share=on,hugetlb=on,hugetlbsize=2M",
            "file": f"memory-backend-file,id=ram0,{size},mem-path={folder_file},share=on",
            "file-private": f"memory-backend-file,id=ram0,{size},mem-path={folder_file},share=off",
        }.get(self.memory)
        machine = self.machine
        if machine == "microvm" and self.accel.startswith("tcg"):
            # With ACPI it has no tick until the TSC is calibrated, which fails
            # on a loaded host: the kernel then waits for its first tick for ever.
            machine += ",acpi=off"
        if backend:
            return f"{machine},memory-backend=ram0", ["-object", backend]
        if self.memory.startswith("numa"):
            return machine, self._numa_options(int(self.memory[4:] or 2))
        return machine, []

    def _numa_options(self, nodes):
        share, cpus = self.mem_mib // nodes, self.smp // nodes
        options = []
        for node in range(nodes):
            # The last one gets what does not divide.
            size = share if node < nodes - 1 else self.mem_mib - node * share
            last = (node + 1) * cpus - 1 if node < nodes - 1 else self.smp - 1
            cpu = f",cpus={node * cpus}-{last}" if last >= node * cpus else ""
            options += ["-object", f"memory-backend-memfd,id=ram{node},size={size}M,share=on",
                        "-numa", f"node,nodeid={node},memdev=ram{node}{cpu}"]
        return options

    def _kernel_options(self):
        if self.kernel is None:
            return []
        suffix = "" if self.arch == "x86_64" else "-arm64"
        image = kernel_path(self.kernel, suffix)
        initramfs = host.lab(f"initramfs{suffix}") / f"initramfs{suffix}.cpio"
        archives = [image.with_name("drivers.cpio")] if self.drivers else []
        if self.hook or self.files:
            archives.append(self._own_files())
        if archives:
            # The kernel unpacks archives that follow each other, one after the other.
            together = self.folder / "initramfs.cpio"
            together.write_bytes(b"".join(path.read_bytes() for path in (initramfs, *archives)))
            initramfs = together
        parameters = " ".join(f"selfcheck.{k}={int(v)}" for k, v in self.selfcheck.items())
        # loglevel: only what the console must show; kernel lines between
        # selfcheck's would tear them apart.
        console = "ttyS0" if self.arch == "x86_64" else "ttyAMA0"
        line = f"console={console} loglevel=3 panic=-1 oops=panic {parameters} {self.append}"
        return ["-kernel", str(image), "-initrd", str(initramfs),
                "-append", " ".join(line.split())]

    def _own_files(self):
        texts = {"hook": self.hook} if self.hook else {}
        return archive_of(texts, self.folder / "root", self.folder / "own.cpio", self.files)


def archive_of(texts, root, archive, files=None):
    """The cpio `archive` of files with these texts, and of copies of `files`, for the kernel to unpack; made in
    the folder `root`."""
    root.mkdir(exist_ok=True)
    for path, text in texts.items():
        (root / path).write_text(text, encoding="utf-8")
    for path, source in (files or {}).items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / path.lstrip("/"))
    with open(archive, "wb") as output:
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"], cwd=root, check=True,
                       input=names, stdout=output, text=True)
    return archive


def kernel_path(kernel, suffix=""):
    """The image of a kernel of the lab ("-arm64": for arm64), or of a path."""
    if os.path.exists(kernel):
        return pathlib.Path(kernel)
    return host.lab(f"kernel-{kernel}{suffix}") / "kernels" / f"{kernel}{suffix}" / "vmlinuz"
