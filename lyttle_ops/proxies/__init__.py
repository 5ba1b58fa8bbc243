"""Proxy entries: validation, rows, and how far each has come in the cluster."""

from lyttle_ops.proxies.model import Proxy, ProxyChanges, ProxyInput, to_site, warnings_about
from lyttle_ops.proxies.store import (
    DomainTaken,
    ProxyNotFound,
    create_proxy,
    delete_proxy,
    find_conflict,
    get_proxy,
    list_proxies,
    update_proxy,
)
from lyttle_ops.proxies.target import parse_target, write_target
from lyttle_ops.proxies.views import Live, ProxyPage, ProxyView, page_of_proxies, view_of_proxy

__all__ = [
    "DomainTaken",
    "Live",
    "Proxy",
    "ProxyChanges",
    "ProxyInput",
    "ProxyNotFound",
    "ProxyPage",
    "ProxyView",
    "create_proxy",
    "delete_proxy",
    "find_conflict",
    "get_proxy",
    "list_proxies",
    "page_of_proxies",
    "parse_target",
    "to_site",
    "update_proxy",
    "view_of_proxy",
    "warnings_about",
    "write_target",
]
