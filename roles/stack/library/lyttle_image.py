#!/usr/bin/python
"""Which image is meant: a digest in a registry, or one that stands on this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: lyttle_image
short_description: Resolve an image to what every node will run
description:
  - An image of a registry is named with its digest, as the registry answers now, without pulling it. One that is named
    with its digest and was deployed here before needs no answer, since nodes may have it still; there is a warning.
  - An image without a registry in its name must stand on this host. It gets a second tag that ends with the start of
    its id, so that another content is another name.
options:
  image:
    description: Its reference, as registry.example.com/lyttle-ops:1.2.3, or without a registry lyttle-ops:1.2.3.
    type: str
    required: true
  username:
    description: User of the registry.
    type: str
    default: ""
  password:
    description: The user's password or token.
    type: str
    default: ""
  docker_host:
    description: The engine's socket, as unix:///var/run/docker.sock.
    type: str
attributes:
  check_mode:
    description: The second tag is not made.
    support: full
"""

RETURN = r"""
image:
  description: The reference to deploy.
  type: str
  returned: success
registry:
  description: Its registry; empty for an image that was loaded onto the nodes.
  type: str
  returned: success
version:
  description: Its version, the label org.opencontainers.image.version or else the tag.
  type: str
  returned: success
"""

import base64
import json
import re
from typing import Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.lyttle_engine import ARGUMENT, Engine, EngineError, config_data, image_version

_HISTORY = "lyttlenginx_release_"
_SUFFIX = re.compile(r"-[0-9a-f]{12}$")


def registry_of(image: str) -> str:
    """The registry in a reference; empty when it names none."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else ""


def resolve(engine: Engine, image: str, username: str, password: str) -> str:
    """The reference with its digest."""
    name, _, pinned = image.partition("@")
    headers = {}
    if username:
        login = {"username": username, "password": password, "serveraddress": registry_of(image)}
        headers["X-Registry-Auth"] = base64.urlsafe_b64encode(json.dumps(login).encode()).decode()
    answer = engine.call("GET", f"/distribution/{quote(image)}/json", headers=headers)
    found = answer["Descriptor"]["digest"]
    return f"{name}@{pinned or found}"


def deployed(engine: Engine, image: str) -> bool:
    """Whether the history has a release of this very digest that succeeded."""
    history = [each for each in engine.configs(_HISTORY) if each["Spec"]["Name"][len(_HISTORY) :].isdigit()]
    records = [config_data(each) for each in history] if "@" in image else []
    return any(each.get("image") == image and each.get("result") == "succeeded" for each in records)


def in_registry(engine: Engine, image: str, username: str, password: str) -> tuple[str, str]:
    """(the reference with its digest, what is wrong with the registry). The way back needs no registry."""
    try:
        return resolve(engine, image, username, password), ""
    except EngineError as exc:
        if not deployed(engine, image):
            raise
        return image, (
            f"The registry {registry_of(image)} does not confirm {image}, which was deployed here before: {exc}. "
            "Nodes that lack it cannot get it"
        )


def local(engine: Engine, image: str, check_mode: bool) -> tuple[str, str, bool]:
    """(reference by content, version, whether the tag is new) of an image on this host."""
    about = engine.call("GET", f"/images/{quote(image)}/json")
    short = about["Id"].removeprefix("sha256:")[:12]
    name, _, tag = image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
    version = (about.get("Config", {}).get("Labels") or {}).get("org.opencontainers.image.version") or tag
    if tag.endswith(f"-{short}"):
        return image, version, False
    named = f"{name}:{_SUFFIX.sub('', tag)}-{short}"
    known = named in (about.get("RepoTags") or [])
    if not known and not check_mode:
        engine.call("POST", f"/images/{quote(image)}/tag", {"repo": name, "tag": named.rpartition(":")[2]})
    return named, version, not known


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "image": {"type": "str", "required": True},
            "username": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            **ARGUMENT,
        },
        supports_check_mode=True,
    )
    options: dict[str, Any] = module.params
    image, engine = options["image"], Engine(options["docker_host"], 60)
    registry = registry_of(image)
    try:
        if registry:
            named, warning = in_registry(engine, image, options["username"], options["password"])
            if warning:
                module.warn(warning)
            module.exit_json(changed=False, image=named, registry=registry, version=image_version(named))
        named, version, changed = local(engine, image, module.check_mode)
        module.exit_json(changed=changed, image=named, registry="", version=version)
    except EngineError as exc:
        where = f"in the registry {registry}" if registry else "on this host, and its name has no registry to ask"
        module.fail_json(msg=f"There is no image {image} {where}: {exc}")


if __name__ == "__main__":
    main()
