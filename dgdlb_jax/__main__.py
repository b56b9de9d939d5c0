"""`python -m dgdlb_jax` is `dgdlb`."""

import os
import sys


def main() -> int:
    """The command line; Ctrl-C during its imports ends it as quietly as later."""
    try:
        from dgdlb_jax.cli import main
    except KeyboardInterrupt:
        os._exit(130)
    return main()


if __name__ == "__main__":
    sys.exit(main())
