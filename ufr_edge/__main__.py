"""`python -m ufr_edge` is the same as `ufr-edge`."""

from ufr_edge.cli import main

if __name__ == "__main__":
    main(prog_name="ufr-edge")
