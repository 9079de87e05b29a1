"""The workloads of `cluster.rs` on dask.distributed; says in JSON lines how long each took.

Fewer tasks where the full number would take minutes: its rates do not grow with the number.
"""

import json
import logging
import operator
import time

from distributed import Client, LocalCluster

ROUND_TRIPS = 500
MAP = 5_000
CHAIN = 1_000
LEAVES = 1 << 11


def inc(x):
    return x + 1


def triple(x):
    return x * 3


def leaf(x):
    return x


def tell(what, seconds, tasks=None):
    print(json.dumps({"what": what, "tasks": tasks, "seconds": seconds}), flush=True)


def round_trips(client):
    times = []
    for i in range(ROUND_TRIPS + 200):
        start = time.perf_counter()
        assert client.submit(inc, i).result() == i + 1
        times.append(time.perf_counter() - start)
    tell("round trip", sorted(times[200:]))


def throughput(client):
    start = time.perf_counter()
    results = client.gather(client.map(triple, range(MAP)))
    assert results[-1] == 3 * (MAP - 1)
    tell("map", time.perf_counter() - start, MAP)

    start = time.perf_counter()
    future = client.submit(inc, 0)
    for _ in range(1, CHAIN):
        future = client.submit(inc, future)
    assert future.result() == CHAIN
    tell("chain", time.perf_counter() - start, CHAIN)

    start = time.perf_counter()
    level = client.map(leaf, range(LEAVES))
    while len(level) > 1:
        level = client.map(operator.add, level[::2], level[1::2])
    assert level[0].result() == LEAVES * (LEAVES - 1) // 2
    tell("tree", time.perf_counter() - start, 2 * LEAVES - 1)


if __name__ == "__main__":
    with (
        LocalCluster(
            processes=True,
            n_workers=2,
            threads_per_worker=1,
            protocol="tcp",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        round_trips(client)
        throughput(client)
