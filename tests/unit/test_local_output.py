"""What commands print is for whom reads it: people at a terminal, programs in a pipe."""

import base64
import os
import pty
import subprocess
import sys

ARGV = [sys.executable, "-m", "lyttle_ops.cli", "settings"]
ENVIRONMENT = {
    **os.environ,
    "DATABASE_URL": "postgresql://u:s3cret@db/x",
    "MASTER_KEY": base64.b64encode(bytes(32)).decode(),
    "COLUMNS": "60",
}


def test_settings_in_a_pipe_are_whole_lines_whatever_the_width() -> None:
    done = subprocess.run(ARGV, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "DATABASE_URL=***  # environment" in lines
    assert "ACME_DIRECTORY_URL=https://acme-v02.api.letsencrypt.org/directory  # default" in lines
    assert "REFRESH_TOKEN_LIFETIME=604800  # default" in lines
    assert all("=" in line and "  # " in line for line in lines)
    assert "s3cret" not in done.stdout


def test_settings_at_a_terminal_are_a_table_with_meanings() -> None:
    mine, theirs = pty.openpty()
    subprocess.run(ARGV, env={**ENVIRONMENT, "COLUMNS": "200"}, stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(mine, 65536).decode()
    os.close(mine)
    assert "meaning" in shown
