"""`python -m summarymixing`, the same as `summarymixing`."""

from summarymixing.cli import main

if __name__ == "__main__":
    main()
