"""`lyttle-ops rotate-master-key`: the second of the three steps in which a cluster's MASTER_KEY changes."""

import click

from lyttle_ops import settings
from lyttle_ops.certificates.encryption import Keyring
from lyttle_ops.certificates.sealing import rotate
from lyttle_ops.cluster.members import nodes_without_key
from lyttle_ops.db import Database
from lyttle_ops.errors import LyttleOpsError


@click.command()
def rotate_master_key() -> None:
    """Encrypt every stored private key with MASTER_KEY, and make it the cluster's.

    First give every node the new MASTER_KEY, with the old one as MASTER_KEY_PREVIOUS; then run this on one of them;
    then take MASTER_KEY_PREVIOUS away. One transaction; run again, it finds nothing to do. Refused while a node that
    lives does not have the new key. Keys that neither of the two reads are named, and the exit code is 1.
    """
    loaded = settings.load()
    keyring = Keyring(*loaded.master_keys())
    database = Database(loaded.database_url.get_secret_value(), "lyttle/rotate-master-key", size=1)
    try:
        with database.transaction() as connection:
            missing = nodes_without_key(connection, keyring.key_id)
            if missing:
                raise LyttleOpsError(
                    f"{', '.join(missing)} {'has' if len(missing) == 1 else 'have'} not got the new MASTER_KEY "
                    f"({keyring.key_id}) and could serve no certificate: update every node first, the old key as "
                    "MASTER_KEY_PREVIOUS. Nothing was changed"
                )
            rotated = rotate(connection, keyring)
    finally:
        database.close()
    click.echo(
        f"the cluster's master key is {keyring.key_id}; encrypted anew: {rotated.orders} keys of certificates, "
        f"{rotated.accounts} of accounts"
    )
    if rotated.unreadable:
        raise LyttleOpsError(
            f"{len(rotated.unreadable)} keys could be read with neither master key and stay as they were:\n  "
            + "\n  ".join(rotated.unreadable)
            + "\nEvery other key is encrypted anew, and nodes cannot use these. Give the master key that they were "
            "encrypted with as MASTER_KEY_PREVIOUS and run this again, or order the certificates anew"
        )
    click.echo("MASTER_KEY_PREVIOUS can go")
