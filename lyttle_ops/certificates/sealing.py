"""Which master key rows are encrypted with, and how all of them change to another one.

The cluster has one master key at a time: cluster_state.key_id. A change takes three steps, and nodes serve throughout:

1. Every node gets MASTER_KEY = the new key and MASTER_KEY_PREVIOUS = the old one. It reads rows of either and goes
   on writing with the cluster's, the old one, since nodes that are not updated yet read no other.
2. `rotate` encrypts every row anew, in one transaction, and makes the new key the cluster's.
3. Nodes lose MASTER_KEY_PREVIOUS at the next update.

A writer holds cluster_state's row (FOR KEY SHARE, which revisions do not wait for) from the look at the key until its
row is committed, and `rotate` takes it FOR UPDATE: no row with the old key comes after the change.
"""

import logging
from dataclasses import dataclass

from lyttle_ops.certificates.encryption import Keyring, Undecryptable, WrongMasterKey
from lyttle_ops.db import load_queries
from lyttle_ops.db.connection import Connection

log = logging.getLogger(__name__)

queries = load_queries("lyttle_ops.certificates")


@dataclass(frozen=True, slots=True)
class Rotated:
    """What `rotate` did: rows encrypted anew, and rows that no key of this node decrypts, left as they are."""

    orders: int
    accounts: int
    unreadable: tuple[str, ...]  # which, and why


def seal(connection: Connection, keyring: Keyring, plaintext: bytes, name: str | int) -> dict[str, object]:
    """{"key_id", "private_key"} of a new row, for the transaction that `connection` is in.

    Raises WrongMasterKey when this node does not have the cluster's key (any more).
    """
    row = connection.execute(queries.hold_key).fetchone()
    key_id = (row and row["key_id"]) or keyring.key_id
    return {"key_id": key_id, "private_key": keyring.encrypt(plaintext, name, key_id)}


def account_name(directory_url: str) -> str:
    """What the key of a CA's account is bound to."""
    return f"account:{directory_url}"


def rotate(connection: Connection, keyring: Keyring) -> Rotated:
    """Encrypt every row with MASTER_KEY and make it the cluster's key; `connection` is in a transaction.

    A row that cannot be read with either key is of no use to any node already; it is named and stays.
    Raises WrongMasterKey when this node does not have the cluster's key.
    """
    new = {"key_id": keyring.key_id}
    held = connection.execute(queries.hold_key_for_change).fetchone()
    if held is not None and held["key_id"] not in (None, *keyring.key_ids):
        raise WrongMasterKey(
            f"the cluster's master key is {held['key_id']}, this node has {' and '.join(keyring.key_ids)}: give it the "
            "cluster's as MASTER_KEY_PREVIOUS. Nothing was changed"
        )
    done = {"order": 0, "account": 0}
    unreadable = []
    # All in memory: a cluster has thousands of orders, a kilobyte each.
    for kind, row in [
        *(("order", row) for row in connection.execute(queries.orders_of_other_keys, new)),
        *(("account", row) for row in connection.execute(queries.accounts_of_other_keys, new)),
    ]:
        name = row["certificate_id"] if kind == "order" else account_name(row["directory_url"])
        try:
            plaintext = keyring.decrypt(bytes(row["private_key"]), name, row["key_id"])
        except Undecryptable as exc:
            which = f"order {row['id']} of {', '.join(row['domains'])}" if kind == "order" else name
            log.warning("The key of %s is left as it is: %s", which, exc)
            unreadable.append(f"{which}: {exc}")
            continue
        values = {**row, **new, "private_key": keyring.encrypt(plaintext, name)}
        connection.execute(queries.seal_order if kind == "order" else queries.seal_account, values)
        done[kind] += 1
    if connection.execute(queries.set_key, new).rowcount or any(done.values()):
        connection.execute(queries.announce)  # nodes write their copies of the state with the new key
    return Rotated(done["order"], done["account"], tuple(unreadable))
