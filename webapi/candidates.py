"""placeholder"""

from lyttle_ops.proxies import ProxyInput


def nginx_message(entry: ProxyInput) -> str | None:
    return None
