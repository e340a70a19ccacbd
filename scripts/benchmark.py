"""Measure speed: python scripts/benchmark.py [--quick] [--json FILE] [--device auto]. Prints one JSON object a line."""

import argparse
import json
import sys
from pathlib import Path

from vis_rpg.benchmark import benchmark
from vis_rpg.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 60 s on two cores, less exact")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to FILE as well")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    arguments = parser.parse_args()
    measured = []
    try:
        for line in benchmark(arguments.device, arguments.quick):
            measured.append(line)
            print(json.dumps(line), flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
