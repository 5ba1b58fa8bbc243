"""A Docker engine of this machine that builds the lab's images; runs only while one is built.

It lives in the lab's network namespace, since two engines in one namespace flush each other's iptables chains, and
keeps its layers in the cache, which one engine at a time may use.
"""

import functools
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.lab import files, rootfs, shell
from tests.lab.network import Network, mtu
from tests.lab.services import Daemon

BASE = "debian:trixie-slim"
_BASE_SUITE = "trixie"
_START_TIMEOUT = 60.0  # seconds
# What the slim variant leaves out of Debian.
_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists")


class EngineFailed(RuntimeError):
    """The engine did not start; the message ends with its last words."""


class Engine:
    """A running engine; `docker` runs its command line."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def docker(self, *words: str, timeout: float = 1200, stdin: str | None = None) -> str:
        """Standard output of `docker words…`. Raises CommandFailed."""
        return shell.run([_client(), *words], timeout=timeout, stdin=stdin, **self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a program speak to this engine."""
        return {"DOCKER_HOST": f"unix://{self._socket}", "DOCKER_BUILDKIT": "1"}

    def build(self, name: str, *, context: Path, dockerfile: str | None, build_args: Mapping[str, str]) -> None:
        """Build the image `name` from the folder `context`, by the text `dockerfile` or the Dockerfile in it."""
        words = [word for key, value in build_args.items() for word in ("--build-arg", f"{key}={value}")]
        if dockerfile is not None:
            words += ["--file", "-"]
        self.docker("build", "--progress=plain", "--tag", name, *words, str(context), stdin=dockerfile)

    def push(self, name: str) -> str:
        """Push the image `name` to the registry in its name; returns repository@digest."""
        self.docker("push", "--quiet", name)
        digests = self.docker("image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', name).split()
        repository = name.rpartition(":")[0]
        return next(digest for digest in digests if digest.startswith(f"{repository}@"))

    def publish(
        self, name: str, context: Path, dockerfile: str | None = None, build_args: Mapping[str, str] | None = None
    ) -> str:
        """`build` and `push`; returns repository@digest."""
        self.build(name, context=context, dockerfile=dockerfile, build_args=build_args or {})
        return self.push(name)

    def has(self, name: str) -> bool:
        """Whether it holds the image `name`."""
        return bool(self.docker("image", "ls", "--quiet", name).strip())


@contextmanager
def running(network: Network, registry: str) -> Iterator[Engine]:
    """An engine that holds the base image and may push to `registry`. Raises EngineFailed, CommandFailed."""
    home = files.CACHE / "engine"
    # Sockets' paths are limited to 107 bytes, checkouts' are not.
    run = Path("/run", f"lyttle-lab-{network.identity}")
    daemon = Daemon("dockerd", run)
    with files.locked(files.CACHE / "engine.lock"):
        daemon.stop()  # of a command that was killed
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        (run / "daemon.json").write_text("{}")
        words = {
            "data-root": home,
            "exec-root": run / "exec",
            "pidfile": run / "docker.pid",
            "host": f"unix://{run}/docker.sock",
            "config-file": run / "daemon.json",  # nothing of this machine's own
            "dns": network.gateway,
            "mtu": mtu(),
            "insecure-registry": registry,
        }
        command = " ".join(["exec dockerd", *(f"--{key}={value}" for key, value in words.items())])
        daemon.start(
            # Not `ip netns exec`, which hides the cgroup mounts.
            [
                *("nsenter", f"--net=/run/netns/{network.namespace}", "unshare", "--mount", "--uts"),
                *("sh", "-c", f"mount --make-rprivate / && {command}"),
            ]
        )
        try:
            engine = Engine(run / "docker.sock")
            _wait(engine, daemon)
            if not engine.has(BASE):
                engine.docker("import", str(base_archive()), BASE)
            yield engine
        finally:
            daemon.stop(grace=30)
            shutil.rmtree(run, ignore_errors=True)


def base_archive() -> Path:
    """A tar file that stands in for `debian:trixie-slim`, made of Debian's packages; kept in the cache.

    For machines that reach Debian's mirrors and no registry. Raises CommandFailed.
    """
    with files.locked(files.CACHE / "base.lock"):
        archive = files.CACHE / f"base-{_BASE_SUITE}-{os.uname().machine}.tar"
        if not archive.exists():
            root, log = files.CACHE / f"base-{_BASE_SUITE}", files.CACHE / f"base-{_BASE_SUITE}.log"
            partial = archive.with_suffix(".partial")
            shutil.rmtree(root, ignore_errors=True)
            try:
                rootfs.bootstrap(root, _BASE_SUITE, ["ca-certificates"], log)
                for name in _SLIM:
                    shutil.rmtree(root / name, ignore_errors=True)
                    (root / name).mkdir()
                # What is installed on top leaves the same out.
                excludes = [f"path-exclude=/{name}/*" for name in _SLIM if name.startswith("usr/share")]
                (root / "etc/dpkg/dpkg.cfg.d/docker").write_text("".join(f"{line}\n" for line in excludes))
                shell.run(
                    [
                        "tar",
                        "--create",
                        "--numeric-owner",
                        "--one-file-system",
                        f"--file={partial}",
                        "-C",
                        str(root),
                        ".",
                    ]
                )
                partial.rename(archive)
            finally:
                partial.unlink(missing_ok=True)
                shutil.rmtree(root, ignore_errors=True)
    return archive


@functools.cache
def _client() -> str:
    """The first `docker` on PATH that can build with BuildKit: from version 23 on that takes the plug-in buildx."""
    for folder in shell.PATH.split(":"):
        program = f"{folder}/docker"
        if not os.access(program, os.X_OK):
            continue
        if shell.run([program, "buildx", "version"], check=False).strip():
            return program
        if int(shell.run([program, "--version"]).split()[2].split(".")[0]) < 23:
            return program
    raise EngineFailed("no docker that can build images with BuildKit is installed: run `.ci/setup lab`")


def _wait(engine: Engine, daemon: Daemon) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            engine.docker("version", timeout=10)
            return
        except shell.CommandFailed as exc:
            if daemon.process is None or time.monotonic() > deadline:
                raise EngineFailed(f"dockerd did not start: {exc}\n{daemon.tail()}") from exc
        time.sleep(0.1)
