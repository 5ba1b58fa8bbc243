"""From root to the stack's own user, keeping the right to bind ports below 1024 and nothing else.

A non-root user gets no capability from `cap_add`, so the holder starts as root with all capabilities dropped but
NET_BIND_SERVICE, SETUID and SETGID. It binds again after a lease ran out, long after it stopped being root, so that one
capability outlives the change of user (prctl(2) PR_SET_KEEPCAPS, capabilities(7)). The standard library knows
neither call.
"""

import ctypes
import os

from lyttle_ops.errors import ConfigurationError

USER = 7443  # uid and gid of the image's account, fixed so that two containers agree on it

_NET_BIND_SERVICE = 1 << 10
_PR_SET_KEEPCAPS = 8
_PR_SET_NO_NEW_PRIVS = 38
_VERSION_3 = 0x20080522  # linux/capability.h

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def give_up_root() -> None:
    """Become USER for good, when this process is root. Raises ConfigurationError without SETUID and SETGID."""
    if os.geteuid() != 0:
        return
    held = (_Data * 2)()
    _call("capget", ctypes.byref(_Header(_VERSION_3, 0)), held)
    kept = held[0].permitted & _NET_BIND_SERVICE
    _prctl(_PR_SET_KEEPCAPS)
    try:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    except PermissionError as exc:
        raise ConfigurationError(
            f"the user cannot be changed to {USER}: give the service cap_add SETUID and SETGID"
        ) from exc
    # A change of user empties the effective set; what was permitted beyond this one goes now.
    _call("capset", ctypes.byref(_Header(_VERSION_3, 0)), (_Data * 2)(_Data(kept, kept, 0), _Data(0, 0, 0)))
    _prctl(_PR_SET_NO_NEW_PRIVS)


def _prctl(option: int) -> None:
    _call("prctl", option, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
