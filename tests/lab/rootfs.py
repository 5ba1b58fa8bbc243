"""Root file systems from Debian's packages: the guests' image, and whatever else needs a bare Debian.

The guests' image is made once per recipe and kept in the cache: its name carries a hash of everything that goes
into it. The hosts made from it are fresh (no Docker, no PostgreSQL, no NFS): the packages that the roles install
only lie in apt's cache, so that installing them downloads nothing.
"""

import hashlib
import inspect
import json
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.lab import files, shell
from tests.lab.apt import machine_apt
from tests.lab.kernel import Kernel

SUITE = "bookworm"
DISK = "8G"  # sparse
_LOCAL_CAS = Path("/usr/local/share/ca-certificates")

# What a freshly installed server has and debootstrap's minimum lacks.
BASE = (
    *("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "iproute2", "iputils-ping"),
    *("ca-certificates", "procps", "iptables", "kmod", "sudo", "curl", "cron", "logrotate"),
)
# What the roles install. A package missing here costs a download and nothing else.
PRELOADED = (
    *("docker.io", "postgresql", "nfs-kernel-server", "nfs-common", "python3-docker", "python3-jsondiff"),
    *("python3-yaml", "python3-psycopg2", "python3-requests", "python3-cryptography", "acl", "rsync", "openssl"),
    *("jq", "gnupg", "nftables", "chrony"),
)


def bootstrap(root: Path, suite: str, packages: Sequence[str], log: Path) -> None:
    """A minimal Debian with `packages` in the folder `root`, which asks the mirrors that this machine asks.

    Raises CommandFailed. Runs in namespaces of its own: when this process ends, nothing stays mounted or running.
    """
    apt = machine_apt()
    archives = files.CACHE / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    isolated(
        [
            *("debootstrap", "--variant=minbase", f"--include={','.join(packages)}", f"--cache-dir={archives}"),
            *(suite, str(root), apt.debian),
        ],
        log,
    )
    (root / "etc/apt/sources.list").write_text(apt.sources(suite))
    (root / "etc/apt/apt.conf.d/80-machine").write_text(apt.settings)
    for authority in _LOCAL_CAS.glob("*.crt"):
        target = root / _LOCAL_CAS.relative_to("/") / authority.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(authority, target)
    with suppress(OSError):
        shutil.copy("/etc/pip.conf", root / "etc/pip.conf")
    if (root / "usr/sbin/update-ca-certificates").exists():
        isolated(["chroot", str(root), "update-ca-certificates"], log)


def isolated(argv: Sequence[str], log: Path, timeout: float = 1800) -> None:
    """Run `argv` with mounts and processes of its own, which end with it. Raises CommandFailed with its last words."""
    with log.open("ab") as output:
        done = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=shell.environment({"DEBIAN_FRONTEND": "noninteractive"}),
        )
    if done.returncode != 0:
        said = log.read_text(errors="replace")[-1500:].strip()
        raise shell.CommandFailed(f"{argv[0]} failed with {done.returncode}; the end of {log}:\n{said}")


def recipe(suite: str, kernel: Kernel, keys: Sequence[str]) -> str:
    """Hash of everything that the guests' image is made from."""
    parts = {
        "suite": suite,
        "base": BASE,
        "preloaded": PRELOADED,
        "keys": list(keys),
        "apt": repr(machine_apt()),
        "kernel": kernel.modules.name,
        "guest": [path.read_text() for path in sorted(files.GUEST.iterdir())],
        "code": inspect.getsource(bootstrap) + inspect.getsource(_prepare),
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def image(suite: str, kernel: Kernel) -> Path:
    """The guests' root image; made when the cache does not hold it yet. Raises CommandFailed."""
    with files.locked(files.CACHE / "image.lock"):
        keys = ssh_keys()
        wanted = files.CACHE / f"root-{suite}-{recipe(suite, kernel, [path.read_text() for path in keys])}.img"
        if not wanted.exists():
            for old in files.CACHE.glob(f"root-{suite}-*.img"):
                old.unlink()
            _make(wanted, suite, kernel)
    return wanted


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk image with its holes; an earlier `target` is gone. Raises CommandFailed."""
    target.unlink(missing_ok=True)
    shell.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)])


def ssh_keys() -> tuple[Path, Path]:
    """Public keys of the person who logs in and of the hosts; made once, with their private halves beside them."""
    for name in ("ssh_key", "host_key"):
        path = files.CACHE / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shell.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lyttle lab {name}", "-f", str(path)])
    return files.CACHE / "ssh_key.pub", files.CACHE / "host_key.pub"


def _make(wanted: Path, suite: str, kernel: Kernel) -> None:
    root, log = files.CACHE / f"root-{suite}", files.CACHE / f"root-{suite}.log"
    shutil.rmtree(root, ignore_errors=True)  # of an attempt that was interrupted
    log.unlink(missing_ok=True)
    partial = wanted.with_suffix(".partial")
    try:
        bootstrap(root, suite, BASE, log)
        _prepare(root, kernel)
        isolated(["chroot", str(root), "apt-get", "-q", "update"], log)
        isolated(["chroot", str(root), "apt-get", "-q", "install", "-y", "--download-only", *PRELOADED], log)
        partial.unlink(missing_ok=True)
        shell.run(["mkfs.ext4", "-q", "-L", "root", "-d", str(root), str(partial), DISK])
        partial.rename(wanted)
    finally:
        partial.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)


def _prepare(root: Path, kernel: Kernel) -> None:
    """Turn a bare Debian into a guest: kernel modules, keys, network, and no work that a lab does not need."""
    shutil.copytree(kernel.modules, root / "lib/modules" / kernel.modules.name, symlinks=True)
    write = {
        # No write barriers: the disk is a file whose written pages survive the guest's kill -9 anyway.
        "etc/fstab": "/dev/ubda / ext4 defaults,noatime,barrier=0 0 1\n",
        "etc/machine-id": "",  # made at the first boot: each host has its own
        "etc/modules-load.d/lab.conf": "ipv6\n",
        "etc/dpkg/dpkg.cfg.d/lab": "force-unsafe-io\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/doc/*\n",
        "etc/apt/apt.conf.d/90-lab": 'APT::Periodic::Enable "0";\nBinary::apt::APT::Keep-Downloaded-Packages "1";\n',
        "etc/ssh/sshd_config.d/lab.conf": "UseDNS no\nPermitRootLogin prohibit-password\nMaxStartups 100\n",
        "etc/sudoers.d/admin": "admin ALL=(ALL) NOPASSWD: ALL\n",
    }
    for name, text in write.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(files.GUEST / "lab-boot", root / "usr/local/sbin/lab-boot")
    (root / "usr/local/sbin/lab-boot").chmod(0o755)
    shutil.copy(files.GUEST / "lab-boot.service", root / "etc/systemd/system/lab-boot.service")
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    for source, target in (("host_key", "ssh_host_ed25519_key"), ("host_key.pub", "ssh_host_ed25519_key.pub")):
        shutil.copy(files.CACHE / source, root / "etc/ssh" / target)
    (root / "etc/ssh/ssh_host_ed25519_key").chmod(0o600)
    (root / "var/log/journal").mkdir(parents=True, exist_ok=True)  # the journal survives a power cut
    inside = [
        "useradd --create-home --shell /bin/bash admin",
        *(
            f"install -d -m 700 -o {user} -g {user} {home}/.ssh && install -m 600 -o {user} -g {user} /tmp/key "
            f"{home}/.ssh/authorized_keys"
            for user, home in (("root", "/root"), ("admin", "/home/admin"))
        ),
        # User-Mode Linux's kernel has no NF_TABLES_IPV4.
        "update-alternatives --set iptables /usr/sbin/iptables-legacy",
        "update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy",
        "systemctl enable -q lab-boot.service",
        "systemctl mask -q getty@tty1.service serial-getty@.service apt-daily.timer apt-daily-upgrade.timer "
        "e2scrub_all.timer e2scrub_reap.service fstrim.timer man-db.timer dpkg-db-backup.timer",
    ]
    shutil.copy(files.CACHE / "ssh_key.pub", root / "tmp/key")
    shell.run(["chroot", str(root), "sh", "-ec", "\n".join(inside)])
    (root / "tmp/key").unlink()
