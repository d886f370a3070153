"""`python -m everlearn` is `everlearn`."""

from everlearn.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
