"""`python -m igczoo` is the command `igczoo`."""
import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
