# SPDX-License-Identifier: Apache-2.0
"""A libvirt of the test's own: its daemon in a mount namespace in which nothing of a real one can be seen."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import textwrap
from xml.sax.saxutils import quoteattr

from .disks import HOOK
from .guest import archive_of, kernel_path
from .host import Unavailable, die_with_parent, end_process, lab, wait_until
from .serial import Serial

# What libvirt keeps for itself, by places that are compiled into it.
OWN_FOLDERS = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/run/libvirt")

MODULES = ("lib/x86_64-linux-gnu/libvirt", "lib/x86_64-linux-gnu/qemu")

USER = "64055"  # Debian's number for libvirt-qemu

QEMU_CONF = """\
security_driver = "none"
cgroup_controllers = [ ]
stdio_handler = "file"
namespaces = [ ]
"""


class Libvirt:
    """With it: a running libvirtd. QEMUs run as libvirt's own user, in its sandbox, as they do by default.

    `pair`: whose libvirt and QEMU: None for the system's, or 'backports', the lab's of bookworm-backports.
    """

    def __init__(self, pair=None):
        self.over_usr = lab(f"libvirt-{pair}") / f"libvirt-{pair}" / "usr" if pair else None

    def __enter__(self):
        if not self.over_usr and not (shutil.which("libvirtd") and shutil.which("virsh")):
            raise Unavailable("there is no libvirtd")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="vmsieve-libvirt-"))
        self.folder.chmod(0o755)
        mounts = [f"mkdir -p {place} && mount -t tmpfs -o mode=755 none {place}" for place in OWN_FOLDERS]
        mounts += [f"mount --bind {self._with_libvirts_user(name)} /etc/{name}" for name in ("passwd", "group")]
        if os.path.exists("/dev/kvm"):
            # Where libvirt and its user disagree on who may open it, libvirt asks each QEMU anew for every
            # domain, which takes a minute.
            (self.folder / "no-kvm").touch(mode=0o000)
            mounts.append(f"mount --bind {self.folder}/no-kvm /dev/kvm")
        if self.over_usr:
            mounts.append(f"mount -t overlay -o lowerdir={self.over_usr}:/usr none /usr")
            # Modules of another version would be loaded too.
            mounts += [f"mount --bind {self.over_usr}/{folder} /usr/{folder}" for folder in MODULES]
        mounts.append(f"cp {self.folder}/*.conf /etc/libvirt/")
        (self.folder / "qemu.conf").write_text(QEMU_CONF, encoding="ascii")
        (self.folder / "libvirtd.conf").write_text('auth_unix_rw = "none"\n', encoding="ascii")
        self.log = open(self.folder / "log", "wb")
        # Who keeps the namespace, whatever becomes of the daemon.
        self.keeper = self._start(["unshare", "--mount", "sh", "-c", f"{' && '.join(mounts)} && exec sleep infinity"])
        self.inside = ["nsenter", "--mount", f"--target={self.keeper.pid}", "--"]
        self.daemon = None
        try:
            wait_until(self._is_made, 10, "the namespace")
            self.start_daemon()
        except TimeoutError as error:
            text = (self.folder / "log").read_text(errors="replace")
            self.__exit__()
            raise Unavailable(f"libvirtd does not run here: {text[-500:]}") from error
        return self

    def _start(self, command):
        return subprocess.Popen(command, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=self.log,
                                stderr=self.log)

    def _is_made(self):
        if self.keeper.poll() is not None:
            raise TimeoutError("the namespace cannot be made")
        return pathlib.Path(f"/proc/{self.keeper.pid}/comm").read_text(encoding="ascii").strip() == "sleep"

    def start_daemon(self):
        self.daemon = self._start([*self.inside, "libvirtd"])
        wait_until(self._answers, 30, "an answer of libvirtd")

    def kill_daemon(self):
        """Its QEMUs live on."""
        self.daemon.kill()
        self.daemon.wait()

    def __exit__(self, *unused):
        for pid in self._qemus():
            end_process(pid)
        if self.daemon is not None:
            self.kill_daemon()
        self.keeper.kill()
        self.keeper.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _with_libvirts_user(self, name):
        """A copy of /etc/passwd or /etc/group that has libvirt's own: who installs libvirt's service has it."""
        text = pathlib.Path("/etc", name).read_text(encoding="utf-8")
        if "\nlibvirt-qemu:" not in text:
            text += f"libvirt-qemu:x:{USER}:{USER + '::/:/usr/sbin/nologin' if name == 'passwd' else ''}\n"
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        return path

    def _answers(self):
        if self.daemon.poll() is not None:
            raise TimeoutError("libvirtd has ended")
        return subprocess.run([*self.inside, "virsh", "-q", "list"], capture_output=True, check=False).returncode == 0

    def _qemus(self):
        """By their folder: a serial file of the test's is on the command line."""
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if str(self.folder).encode() in (process / "cmdline").read_bytes() and \
                        (process / "exe").resolve().name.startswith("qemu-system"):
                    yield int(process.name)
            except (OSError, ValueError):
                continue

    def virsh(self, *arguments, check=True):
        done = subprocess.run([*self.inside, "virsh", "-q", *map(str, arguments)], text=True, capture_output=True,
                              timeout=180, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"virsh {arguments}: {done.stderr}")
        return done.stdout.strip()

    def state(self, name):
        return self.virsh("domstate", name, check=False)

    def disks_of(self, name, *options):
        """Each disk's file by its target: what libvirt believes."""
        lines = self.virsh("domblklist", name, *options).splitlines()
        return {target: pathlib.Path(file) for target, file in (line.split(maxsplit=1) for line in lines)}

    def start(self, name, mem_mib=384, selfcheck=None, disks=(), hook="", arguments=(), timeout=180):
        """A domain whose guest checks itself; its Serial, once it does. `disks`: images in self.folder, on which
        its ledger is; `hook`: what it runs before, where it has no disks; `arguments`: more for its QEMU."""
        serial = self.folder / f"{name}.serial"
        serial.unlink(missing_ok=True)
        # Where libvirt's user may read them; libvirt gives them to it.
        kernel, initrd = self.folder / f"{name}.kernel", self.folder / f"{name}.initrd"
        shutil.copy(kernel_path("6.1"), kernel)
        archives = [lab("initramfs") / "initramfs.cpio"]
        devices = ""
        targets = [f"vd{'abcdefgh'[number]}" for number in range(len(disks))]
        if disks:
            hook = HOOK.format(disks=" ".join(targets))
            archives.append(kernel_path("6.1").with_name("drivers.cpio"))
        if hook:
            archives.append(archive_of({"hook": hook}, self.folder / f"{name}.root", self.folder / f"{name}.cpio"))
        initrd.write_bytes(b"".join(path.read_bytes() for path in archives))
        for path, target in zip(disks, targets):
            devices += f"""
                <disk type='file' device='disk'>
                  <driver name='qemu' type='{"raw" if path.suffix == ".raw" else "qcow2"}'/>
                  <source file='{path}'/><target dev='{target}' bus='virtio'/>
                </disk>"""
        parameters = " ".join(f"selfcheck.{key}={int(value)}" for key, value in (selfcheck or {}).items())
        more = "".join(f"<qemu:arg value={quoteattr(word)}/>" for word in map(str, arguments))
        xml = self.folder / f"{name}.xml"
        xml.write_text(textwrap.dedent(f"""\
            <domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
              <name>{name}</name>
              <memory unit='MiB'>{mem_mib}</memory>
              <vcpu>1</vcpu>
              <os>
                <type arch='x86_64' machine='q35'>hvm</type>
                <kernel>{kernel}</kernel>
                <initrd>{initrd}</initrd>
                <cmdline>console=ttyS0 loglevel=3 panic=-1 oops=panic {parameters}</cmdline>
              </os>
              <features><acpi/></features>
              <cpu mode='custom' match='exact' check='none'>
                <model fallback='allow'>qemu64</model>
                <feature policy='disable' name='cx16'/>
              </cpu>
              <devices>
                <emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}
                <serial type='file'><source path='{serial}'/><target port='0'/></serial>
                <memballoon model='none'/>
              </devices>
              {f"<qemu:commandline>{more}</qemu:commandline>" if more else ""}
            </domain>
            """), encoding="ascii")
        self.virsh("define", xml)
        self.virsh("start", name)
        started = Serial(serial)
        started.wait_for("selfcheck: ready .*\n", timeout)
        return started
