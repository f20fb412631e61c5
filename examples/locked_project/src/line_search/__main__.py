"""`python -m line_search "the query" FILE` prints the closest lines of a text file."""

import argparse
from pathlib import Path

from line_search.search import search


def main() -> None:
    parser = argparse.ArgumentParser(prog="line_search", description=__doc__)
    parser.add_argument("query")
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=3, help="lines to print (default: 3)")
    arguments = parser.parse_args()
    lines = arguments.file.read_text(encoding="utf-8").splitlines()
    for match in search(arguments.query, lines, arguments.count):
        print(f"{match.score:.3f}  {match.position + 1}: {match.line}")


if __name__ == "__main__":
    main()
