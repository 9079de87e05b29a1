"""The workloads of `main.rs` on dask-mpi; rank 1, which runs the program, says in JSON lines how long each took.

Fewer tasks where the full number would take minutes: its rates do not grow with the number.
"""

import json
import sys
import time

from dask_mpi import initialize
from distributed import Client

ROUND_TRIPS = 300
TASKS = 5_000


def inc(x):
    return x + 1


def triple(x):
    return x * 3


def tell(what, **figures):
    print(json.dumps({"what": what, **figures}), flush=True)


def round_trip(client):
    times = []
    for i in range(ROUND_TRIPS + 100):
        start = time.perf_counter()
        assert client.submit(inc, i).result() == i + 1
        times.append(time.perf_counter() - start)
    tell("round trip", seconds=sorted(times[100:]))


def map_tasks(client):
    start = time.perf_counter()
    results = client.gather(client.map(triple, range(TASKS)))
    assert results[-1] == 3 * (TASKS - 1)
    tell("map", tasks=TASKS, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    measure, workers, directory = sys.argv[1:]
    initialize(nthreads=1, dashboard=False, local_directory=directory)
    with Client() as client:
        client.wait_for_workers(int(workers))
        {"empty": lambda _: None, "round-trip": round_trip, "map": map_tasks}[measure](client)
