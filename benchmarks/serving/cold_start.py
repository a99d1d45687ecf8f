"""(e) From the command to ready: the service alone, the minis, and full-size HPSv2 with random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.serving.harness import Server, fakes, median, report, seconds, zoo
from benchmarks.serving.served import full_size_hpsv2


def main(rounds: int = 3, full: bool = True) -> None:
    with tempfile.TemporaryDirectory() as folder:
        servers = {
            "a reward without weights": fakes(),
            "hpsv2:mini and imagereward:mini": zoo("hpsv2:mini", "imagereward:mini"),
        }
        if full:
            weights = json.dumps({"hpsv2:v2.1": str(full_size_hpsv2(Path(folder)))})
            servers["hpsv2:v2.1, full size"] = zoo("hpsv2:v2.1", weights=weights)
        rows = [{"server": name, **start(server, rounds)} for name, server in servers.items()]
    report("cold_start", rows, rounds=rounds, statistic="median")


def start(server: Server, rounds: int) -> dict[str, float]:
    times = []
    for _ in range(rounds):

        def once() -> None:
            server.start()
            server.wait_ready(600)

        times.append(seconds(once))
        resident = server.resident_mib()
        server.kill()
    return {"seconds": median(times), "resident_mib": resident}
