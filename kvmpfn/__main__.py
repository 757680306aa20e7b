"""``python -m kvmpfn`` is the command line too."""

from kvmpfn.cli import main

if __name__ == "__main__":
    main()
