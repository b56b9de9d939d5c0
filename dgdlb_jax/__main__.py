"""`python -m dgdlb_jax` is `dgdlb`."""

import sys

from dgdlb_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
