"""`python -m lyttle_ops.cli` is `lyttle-ops`."""

from lyttle_ops.cli import main

main()
