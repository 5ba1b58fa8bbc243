"""The hosts' kernel: User-Mode Linux of Debian 13, whatever this machine runs.

Starting a program in a guest takes a tenth of the time that it takes with Debian 12's 6.1, and half the processor
(12 against 190 ms on a busy machine). 7.2 of the present testing release is no faster and lacks IPv4's tables of
netfilter, which Docker needs. The package wants a newer C library than Debian 12 has, so it brings its own.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.lab import files, shell
from tests.lab.apt import machine_apt

_SUITE = "trixie"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A program that boots a guest, and the modules that belong into the guest's root."""

    folder: Path

    @property
    def program(self) -> Path:
        return self.folder / "linux.uml"

    @property
    def modules(self) -> Path:
        """Folder named after the kernel's release."""
        return next((self.folder / "modules").iterdir())


def kernel() -> Kernel:
    """The kernel, fetched when the cache does not hold it. Raises CommandFailed."""
    # The program names its library by path: a checkout that was moved needs another.
    found = Kernel(files.CACHE / f"kernel-{_SUITE}-{files.identity('kernel')}")
    with files.locked(files.CACHE / "kernel.lock"):
        if not found.folder.exists():
            partial = found.folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _fetch(partial, found.folder)
                partial.rename(found.folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return found


def _fetch(folder: Path, final: Path) -> None:
    work = folder / "apt"
    for name in ("lists/partial", "archives/partial", "parts"):
        (work / name).mkdir(parents=True)
    apt = machine_apt()
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {apt.debian} {_SUITE} main\n")
    (work / "status").touch()
    (work / "apt.conf").write_text(
        f'Dir::Etc "{work}"; Dir::Etc::Parts "parts"; Dir::Etc::SourceParts "parts";\n'
        'Dir::Etc::PreferencesParts "parts";\n'
        f'Dir::State "{work}"; Dir::State::Status "{work}/status"; Dir::Cache "{work}";\n'
        f'APT::Sandbox::User "root";\n{apt.settings}'
    )
    shell.run(["apt-get", "-q", "update"], APT_CONFIG=str(work / "apt.conf"))
    shell.run(
        ["env", f"--chdir={work}", "apt-get", "-q", "download", "user-mode-linux", "libc6"],
        APT_CONFIG=str(work / "apt.conf"),
    )
    for package in work.glob("*.deb"):
        shell.run(["dpkg-deb", "--extract", str(package), str(work / "root")])
    shutil.copy(work / "root/usr/bin/linux.uml", folder / "linux.uml")
    shutil.move(work / "root/usr/lib/uml/modules", folder / "modules")
    loader = next((work / "root").glob("**/ld-linux-x86-64.so.2")).resolve()
    (folder / "lib").mkdir()
    for name in (loader.name, "libc.so.6"):
        shutil.copy(loader.parent / name, folder / "lib" / name)
    shell.run(["patchelf", "--set-interpreter", str(final / "lib" / loader.name), str(folder / "linux.uml")])
    shell.run(["patchelf", "--set-rpath", str(final / "lib"), str(folder / "linux.uml")])
    shutil.rmtree(work)
