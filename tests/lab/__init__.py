"""Three fresh Debian hosts on this machine: kernels of their own (User-Mode Linux), on a network of their own.

`make lab` for a person, `Lab` for a test. Its parts from the outside in: `lab` (what exists and in which order it
starts and ends), `host` (one guest: run, copy, power cut, network cut), `services` (registry, ACME CA, DNS on the
bridge), `engine` (a Docker engine that builds images), `network` (bridge, taps, NAT), `rootfs` (the guests' root
image), `kernel` (what they boot), `inventory` (what Ansible reads), `apt` (this machine's mirrors), `files` (locks
and paths), `detached` (processes that outlive their starter), `shell` (commands of this machine).
"""

from tests.lab.host import Host, HostError
from tests.lab.lab import Lab, LabError

__all__ = ["Host", "HostError", "Lab", "LabError"]
