"""From desired state to configuration files: pure, no file is read and no name is resolved.

Nothing of a site is pasted. Each field is checked against what it may be (fields.py), whatever was checked before;
texts are quoted (syntax.py); and the templates refuse to put out anything that went through neither.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2

from lyttle_ops.nginx import fields
from lyttle_ops.nginx.errors import UnsafeValue
from lyttle_ops.nginx.model import Layout, Site
from lyttle_ops.nginx.server_blocks import server_blocks, upstream_name, upstream_servers
from lyttle_ops.nginx.syntax import Text, build, literal, number


def render(sites: Iterable[Site], layout: Layout) -> dict[str, str]:
    """Every file of a release, relative name -> content: nginx.conf and one sites/<id>.conf a site.

    nginx.conf includes release.conf, which tells NGINX the hash of all the others (`release_file`).
    Raises UnsafeValue or CustomCodeError for the first site that cannot be rendered.
    """
    files = {site_file(site.id): render_site(site, layout) for site in sites}
    return {"nginx.conf": render_main(layout, files.values()), **files}


def render_site(site: Site, layout: Layout) -> str:
    """The file of one site. Raises UnsafeValue or CustomCodeError."""
    blocks = server_blocks(site, layout)
    servers = upstream_servers(site)
    return _TEMPLATES.get_template("site.conf.j2").render(
        upstream=upstream_name(site) if servers else None,
        upstream_servers=servers,
        servers=[
            {
                "listen": block.listen,
                "domains": block.domains,
                "certificate": block.certificate,
                "key": block.key,
                "body": build(block.body, 1),
            }
            for block in blocks
        ],
    )


def render_main(layout: Layout, site_files: Iterable[str]) -> str:
    """nginx.conf for these site files. Raises UnsafeValue."""
    # NGINX wants room for the names, or it refuses to start; doubling keeps the number, so the hash, mostly the same.
    size = 4096
    names = sum(len(line.split()) - 1 for text in site_files for line in text.splitlines() if "server_name " in line)
    while size < 4 * names:
        size *= 2
    return _TEMPLATES.get_template("nginx.conf.j2").render(
        path=lambda name: fields.file(layout.folder, name),
        user=fields.identifier(layout.user) if layout.user else None,
        open_files=number(layout.open_files),
        connections=number(layout.open_files // 2),
        names_hash_size=number(size),
        access_log=layout.access_log,
        json_log=layout.json_log,
        http2_directive=fields.has_http2_directive(layout),
        proxy_protocol=layout.proxy_protocol,
        trusted_load_balancers=[fields.network(value) for value in layout.trusted_load_balancers],
        trusted_certificates=literal(layout.trusted_certificates),
        name_servers=[fields.name_server(value) for value in layout.name_servers],
        release_socket=fields.listen(f"unix:{layout.folder}/nginx.sock", layout),
        http_default=[fields.listen(value, layout, default=True) for value in layout.http_listen],
        https_default=[
            fields.listen(value, layout, tls=True, default=True)
            for value in (*layout.https_listen, f"unix:{layout.folder}/nginx-tls.sock")
        ],
        thumbprint=fields.thumbprint(layout.thumbprint),
        instance_id=fields.identifier(layout.instance_id),
        task_id=fields.identifier(layout.task_id) if layout.task_id else None,
    )


def site_file(site_id: int) -> str:
    """The name of a site's file; NGINX's messages name it, and so the site."""
    return f"sites/{number(site_id)}.conf"


def release_hash(files: Mapping[str, str]) -> str:
    """What a release is called: the first 16 hexadecimal digits of SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        for part in (name.encode(), content.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def release_file(release: str) -> str:
    """release.conf: the hash as an NGINX variable, apart from what is hashed."""
    return f'map "" $lyttle_release {{ default {literal(release)}; }}\n'


def _only_text(value: Any) -> Text:
    if not isinstance(value, Text):
        raise UnsafeValue("a template was about to put out a value that is neither checked nor quoted")
    return value


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("lyttle_ops.nginx"),
    undefined=jinja2.StrictUndefined,
    autoescape=False,  # noqa: S701  this is no HTML; _only_text is the guard
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    finalize=_only_text,
)
