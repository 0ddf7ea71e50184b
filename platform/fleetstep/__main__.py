"""`python -m fleetstep`: the same as the console script."""

from fleetstep.cli import main

main()
