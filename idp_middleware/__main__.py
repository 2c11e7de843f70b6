"""`python -m idp_middleware` is `idp-middleware`."""

import sys

from idp_middleware._cli import main

if __name__ == "__main__":
    sys.exit(main())
