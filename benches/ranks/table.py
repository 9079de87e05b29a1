"""Makes a table of the JSON lines of all sides: `table.py DIR`, where DIR holds SIDE.N.json of each run N."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

# Rankine as it is without settings, which is mpi:// between ranks and inproc:// within one; and over one alone.
SIDES = {
    "rankine": "Rankine",
    "mpi": "mpi:// alone",
    "tcp": "tcp:// alone",
    "bare": "bare MPI",
    "dask": "dask-mpi",
}
# How many times better the first is than the second.
PAIRS = [("mpi", "tcp"), ("rankine", "bare"), ("rankine", "dask")]
CHUNK_MIB = 256


def number(figure):
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:,.1f}"


# How a row is told, and what it is made of. Of the first the less the better, of the others the more.
ROWS = {
    "start to exit of 4 ranks": ("ms", min),
    "round trip, p50": ("µs", min),
    "round trip, p99": ("µs", min),
    "map": ("tasks/s", max),
    "chunk of 256 MiB": ("MiB/s", max),
    "an idle worker": ("% of a core", min),
}


def figures_of(run):
    """What one JSON line tells: rows and figures."""
    what, seconds = run["what"], run.get("seconds")
    if what == "start":
        yield "start to exit of 4 ranks", seconds * 1e3
    elif what == "round trip":
        for share in (50, 99):
            yield f"round trip, p{share}", seconds[len(seconds) * share // 100] * 1e6
    elif what == "map":
        yield "map", run["tasks"] / seconds
    elif what == "chunk":
        yield "chunk of 256 MiB", CHUNK_MIB / median(seconds)
    elif what == "idle":
        yield "an idle worker", run["share"] * 100


def read(directory):
    figures = defaultdict(list)
    for path in sorted(directory.glob("*.json")):
        side = path.name.split(".")[0]
        for line in path.read_text().splitlines():
            for row, figure in figures_of(json.loads(line)):
                figures[row, side].append(figure)
    return {place: median(values) for place, values in figures.items()}


def main():
    figures = read(Path(sys.argv[1]))
    ratios = [f"{SIDES[one]} : {SIDES[other]}" for one, other in PAIRS]
    print("| |", " | ".join([*SIDES.values(), *ratios]), "|")
    print("|" + "---|" * (len(SIDES) + len(PAIRS) + 1))
    for row, (unit, better) in ROWS.items():
        known = {side: figures.get((row, side)) for side in SIDES}
        cells = [row]
        cells += ["-" if figure is None else f"{number(figure)} {unit}" for figure in known.values()]
        for one, other in PAIRS:
            ours, theirs = known[one], known[other]
            if ours is None or theirs is None:
                cells.append("-")
            else:
                cells.append(f"{theirs / ours if better is min else ours / theirs:,.2f}")
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
