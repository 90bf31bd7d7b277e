"""`python -m xenpy` is the command line."""

from xenpy.cli.main import main

if __name__ == "__main__":
    main()
