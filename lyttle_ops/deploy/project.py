"""Where the playbooks, roles and compose file are: in the installed package, or beside it in a checkout."""

import itertools
from pathlib import Path

from lyttle_ops.errors import LyttleOpsError


class PlaybooksMissing(LyttleOpsError):
    """The playbooks are not there."""


def content() -> Path:
    """The folder that holds playbooks/, roles/, docker-compose.swarm.yml and inventory.example.ini.

    The wheel carries them in lyttle_ops/ansible/, laid out as in a checkout.

    Raises:
        PlaybooksMissing: neither is there, as in the container's installation.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "ansible", package.parent):
        if (folder / "playbooks").is_dir() and (folder / "roles").is_dir():
            return folder
    raise PlaybooksMissing(
        f"this installation of lyttle-ops ({package}) has no playbooks: run it from a checkout, or install the wheel"
        " (pip install 'lyttle-ops[control]')"
    )


def playbooks() -> dict[str, str]:
    """What each playbook does, the first sentence of its head, by name.

    Raises:
        PlaybooksMissing: they are not there.
    """
    files = sorted((content() / "playbooks").glob("*.yml"))
    return {file.stem: _first_sentence(file) for file in files if file.stem != "requirements"}  # ansible-galaxy's


def _first_sentence(file: Path) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("# "), file.read_text(encoding="utf-8").splitlines())
    prose = (line.removeprefix("# ") for line in lines if not line.startswith("#   "))
    return " ".join(prose).partition(". ")[0].rstrip(".")


def playbook(name: str) -> Path:
    """The file of the playbook `name`.

    Raises:
        PlaybooksMissing: it is not there.
    """
    file = content() / "playbooks" / f"{name}.yml"
    if not file.is_file():
        raise PlaybooksMissing(f"there is no playbook {file}: this installation of lyttle-ops is not whole")
    return file
