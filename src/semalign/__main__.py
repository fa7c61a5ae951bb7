"""The command `semalign`, and `python -m semalign`, and so `accelerate launch -m semalign`."""

import sys

from semalign.run.pages import keep_pages


def run() -> int:
    """Entry point; see `semalign.cli.main`."""
    keep_pages()
    from semalign.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
