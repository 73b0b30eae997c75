"""`python -m lorimer` is `lorimer`."""

from lorimer.cli import main

main()
