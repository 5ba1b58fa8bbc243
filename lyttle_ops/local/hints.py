"""Commands in messages, as a person can copy them: the program as it was called, the folder where it is needed."""

import os
import shlex
import shutil
import sys

from lyttle_ops.local.folders import Folders, default_state_folder

PROGRAM = "lyttle-ops"


def program() -> str:
    """This program as the caller can call it again, quoted for a shell."""
    called = sys.argv[0]
    if os.path.basename(called) == PROGRAM:
        found = shutil.which(PROGRAM)
        # A shell that found it on PATH passes the whole path on.
        return PROGRAM if found and os.path.realpath(found) == os.path.realpath(called) else shlex.quote(called)
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    if os.path.basename(called) == "__main__.py" and module is not None and module.parent:
        return f"{shlex.quote(sys.executable)} -m {module.parent}"
    return PROGRAM


def command(folders: Folders, *words: str) -> str:
    """`lyttle-ops local WORDS` for the cluster in `folders`."""
    where = [] if folders.state == default_state_folder().absolute() else ["--state-dir", str(folders.state)]
    return " ".join([program(), "local", *map(shlex.quote, [*words, *where])])
