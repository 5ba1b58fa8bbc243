"""What Ansible reads of a lab: inventory.ini, group_vars/all.yml and the key beside them."""

from pathlib import Path

import yaml

from tests.lab.host import Host
from tests.lab.services import Services

_HEADER = "# Written by tests.lab; `python -m tests.lab up` writes it again.\n"


def write(folder: Path, hosts: list[Host], services: Services) -> Path:
    """The inventory of `hosts` in `folder`; returns its path.

    All are managers, so that the quorum survives any one of them. PostgreSQL is on the first and NFS on the last,
    so that a test can cut off the leader's host, the database and the file server separately.
    """
    inventory = folder / "inventory.ini"
    lines = [_HEADER + "[managers]"]
    lines += [f"{host.name} ansible_host={host.address} swarm_address={host.address}" for host in hosts]
    lines += ["", "[workers]", "", "[swarm:children]", "managers", "workers", ""]
    lines += ["[postgres]", hosts[0].name, "", "[nfs]", hosts[-1].name, ""]
    inventory.write_text("\n".join(lines))
    variables = folder / "group_vars" / "all.yml"
    variables.parent.mkdir(exist_ok=True)
    variables.write_text(_HEADER + yaml.safe_dump(group_variables(folder, services), sort_keys=False))
    return inventory


def group_variables(folder: Path, services: Services) -> dict[str, object]:
    """Variables of all hosts: how to reach them, and what is so in a lab only."""
    ssh = f"-F /dev/null -o UserKnownHostsFile={folder / 'known_hosts'} -o IdentitiesOnly=yes"
    return {
        "ansible_user": "admin",  # as on a rented server: sudo, no root login
        "ansible_ssh_private_key_file": str(folder / "ssh_key"),
        "ansible_ssh_common_args": ssh,
        "ansible_ssh_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
        "docker_insecure_registries": [services.registry],
        **acme(services),
        "stack_settings": {"HEALTH_INTERVAL": "20s"},  # to start a check takes a guest seconds of its one slow CPU
    }


def acme(services: Services) -> dict[str, object]:
    """Variables of a stack whose certificates the CA of `services` issues."""
    return {"stack_acme_directory_url": services.ca.directory_url, "stack_acme_ca_file": str(services.ca.root)}
