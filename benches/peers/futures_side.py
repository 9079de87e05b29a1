"""The workloads of `cluster.rs` that concurrent.futures has words for; JSON lines, as `dask_side.py`."""

import json
import time
from concurrent.futures import ProcessPoolExecutor

ROUND_TRIPS = 10_000
MAP = 100_000


def inc(x):
    return x + 1


def triple(x):
    return x * 3


def tell(what, seconds, tasks=None):
    print(json.dumps({"what": what, "tasks": tasks, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        times = []
        for i in range(ROUND_TRIPS + 2_000):
            start = time.perf_counter()
            assert pool.submit(inc, i).result() == i + 1
            times.append(time.perf_counter() - start)
        tell("round trip", sorted(times[2_000:]))

        # One task a message, as the others have it.
        start = time.perf_counter()
        results = list(pool.map(triple, range(MAP)))
        assert results[-1] == 3 * (MAP - 1)
        tell("map", time.perf_counter() - start, MAP)
