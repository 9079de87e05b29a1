"""Makes a table of the JSON lines of all sides: `table.py DIR`, where DIR holds SIDE.N.json of each run N."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

SIDES = {"rankine": "Rankine", "dask": "dask.distributed", "futures": "ProcessPoolExecutor"}


def at(times, share):
    return times[len(times) * share // 100] * 1e6


def count(number):
    return f"{number:,.0f}"


def read(directory):
    """Round trips are kept as microseconds (p50 and p99), all else as tasks a second."""
    figures = defaultdict(list)
    tasks = {}
    for path in sorted(directory.glob("*.json")):
        side = path.name.split(".")[0]
        for line in path.read_text().splitlines():
            run = json.loads(line)
            if run["what"] == "round trip":
                for share in (50, 99):
                    figures[side, f"round trip, p{share}"].append(at(run["seconds"], share))
            else:
                figures[side, run["what"]].append(run["tasks"] / run["seconds"])
                tasks[side, run["what"]] = run["tasks"]
    return {place: median(values) for place, values in figures.items()}, tasks


def main():
    figures, tasks = read(Path(sys.argv[1]))
    print("| |", " | ".join([*SIDES.values(), *(f"times {SIDES[s]}" for s in ("dask", "futures"))]), "|")
    print("|" + "---|" * (len(SIDES) + 3))
    for what in dict.fromkeys(what for _, what in figures):
        latency = what.startswith("round trip")
        cells = [what]
        for side in SIDES:
            figure = figures.get((side, what))
            if figure is None:
                cells.append("-")
            elif latency:
                cells.append(f"{count(figure)} µs")
            else:
                cells.append(f"{count(figure)} tasks/s (of {count(tasks[side, what])})")
        ours = figures["rankine", what]
        for side in ("dask", "futures"):
            theirs = figures.get((side, what))
            if theirs is None:
                cells.append("-")
            else:
                cells.append(f"{theirs / ours if latency else ours / theirs:,.1f}")
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
