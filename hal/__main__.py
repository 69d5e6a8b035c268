"""``python -m hal``: the command line."""

from hal.cli import main

if __name__ == "__main__":
    main()
