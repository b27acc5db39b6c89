"""How many histories of the simulator one core plays in a minute.

Run ``python benchmarks/simulation.py [--seconds 20]`` from the project's root, with what
``pip install -e '.[test]'`` installs.  Two figures: orders explored (every interleaving of
two callers with one kill anywhere; an order that comes to a state seen before ends there)
and random histories drawn (two callers, one kill, one pause, checked to the end by two
further processes).  Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Measure and print both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each figure")
    seconds: float = parser.parse_args().seconds
    from tests.simulation.scenario import Scenario
    from tests.simulation.scheduler import draw, explore

    scenario = Scenario(("get", "get"))
    played, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        played += explore(scenario, kills=1, most_runs=2000)[0]
    print(f"explored: {played * 60 / (time.process_time() - began):,.0f} orders a minute")
    played, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        draw(scenario, played, kills=1, pauses=1)
        played += 1
    print(f"drawn: {played * 60 / (time.process_time() - began):,.0f} histories a minute")


if __name__ == "__main__":
    main()
