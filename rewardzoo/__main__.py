"""`python -m rewardzoo` is the command `rewardzoo`."""

from rewardzoo.cli import main

main()
