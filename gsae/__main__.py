"""`python -m gsae`: the same as the console script `gsae`."""

from gsae.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
