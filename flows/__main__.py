"""`python -m flows` is the command `photoloom`."""

from flows.cli import main

main()
