"""The run of scripts/check-reload-growth: many reloads of different configurations under load, then very large ones.

    python3 growth.py FUSEGATE DIRECTORY GATEWAY_PORT FIRST_UPSTREAM_PORT RELOADS STRICT

STRICT is 1 when a large configuration that takes a second or longer is a failure, not only a number. It must not know
how the gateway works; /proc, the log and the status document are all it looks at.
"""

import asyncio
import glob
import os
import re
import signal
import sys
import threading
import time

from gateway import HERE, Failed, Gateway, end_with_us, until
from caller import Caller

PROGRAM, DIRECTORY, GATE, FIRST, RELOADS, STRICT = sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:7])
CONNECTIONS = 32
GROWTH_KIB = 1024
SERVICES, EACH, LIMIT = 1000, 10, 1.0
URL = f"http://127.0.0.1:{GATE}/v1/proxy/demo/bytes/100"


def config(turn, services=()):
    """Two that really differ: in upstreams, in settings, in a service that comes and goes."""
    other, cooldown, name = ((FIRST + 1, 10, "left"), (FIRST + 2, 20, "right"))[turn % 2]
    return f"""demo:
  upstreams: ["http://127.0.0.1:{FIRST}", "http://127.0.0.1:{other}"]
  circuit_breaker: {{cooldown: {cooldown}s}}
  pool: {{idle: 1s}}
{name}: ["http://127.0.0.1:{FIRST}/{name}"]
{"".join(services)}gateway: {{listen: "127.0.0.1:{GATE}", workers: 2}}
"""


def large(cooldown):
    """Services of addresses that need no resolver, and that nobody asks for anything."""
    for service in range(SERVICES):
        yield f"large-{service}:\n  circuit_breaker: {{cooldown: {cooldown}s}}\n  upstreams:\n"
        for upstream in range(EACH):
            yield f"    - http://127.0.0.{1 + service % 250}:{20000 + 100 * (service // 250) + upstream}\n"


class Turns(threading.Thread):
    """How long a shard computes without a pause, seen from outside: the processor time between two moments at which its
    thread waited by itself. A turn is no longer than that; when there is much to do, one wait may follow several."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.shards = [path[:-4] for path in glob.glob(f"/proc/{pid}/task/*/comm") if open(path).read()[:6] == "shard-"]
        self.longest, self.asked = 0.0, None

    def look(self, shard):
        waits = int(re.search(r"\nvoluntary_ctxt_switches:\s*(\d+)", open(f"{shard}status").read()).group(1))
        return waits, int(open(f"{shard}schedstat").read().split()[0]) / 1e9

    def run(self):
        since = {shard: self.look(shard) for shard in self.shards}
        # Whoever asks for the end may do so in the middle of a turn: each shard waits once more before it comes.
        left = None
        while left is None or left and time.monotonic() < self.asked + 2.0:
            for shard in self.shards:
                waits, ran = self.look(shard)
                if waits != since[shard][0]:
                    self.longest = max(self.longest, ran - since[shard][1])
                    since[shard] = waits, ran
                    if left is not None:
                        left.discard(shard)
            if left is None and self.asked is not None:
                left = set(self.shards)
            time.sleep(0.0005)

    def end(self):
        self.asked = time.monotonic()
        self.join()
        return self.longest


async def slowest(end):
    """The longest answer that a client waited for, one request after the other until `end`."""
    caller, longest, number = Caller(GATE), 0.0, 0
    while not end.is_set():
        number += 1
        answer = await caller.ask("GET", "/v1/proxy/demo/bytes/100", f"probe-{number}")
        if answer.fault or answer.status != 200:
            raise Failed(f"a request failed: {answer}")
        longest = max(longest, answer.ended - answer.begun)
        await asyncio.sleep(0.001)
    caller.close()
    return longest


async def many(gateway):
    """Reloads between two configurations, by the endpoint and each fifth by SIGHUP."""
    early, resident, times = max(RELOADS // 10, 1), 0, []
    for turn in range(1, RELOADS + 1):
        gateway.write(config(turn))
        times.append(await (gateway.reload() if turn % 5 else gateway.hang_up()))
        if turn == early:
            resident = gateway.resident_kib()
    growth = gateway.resident_kib() - resident
    print(
        f"{RELOADS} reloads, {1000 * sum(times) / RELOADS:.1f} ms each on average, {1000 * max(times):.0f} at most;"
        f" resident memory after number {early}: {resident} KiB, {growth:+} until the last",
        flush=True,
    )
    await until(f"the log's {RELOADS} lines", lambda: gateway.told_of("is in force") == RELOADS)
    if growth > GROWTH_KIB:
        raise Failed(f"memory grew by {growth} KiB")


async def huge(gateway):
    """A thousand services come, change, and go."""
    steps = [
        (f"{SERVICES} services with {EACH} upstreams each come", list(large(10))),
        ("a setting of all of them changes", list(large(20))),
        ("all of them go", []),
    ]
    for number, (what, services) in enumerate(steps):
        gateway.write(config(RELOADS + number + 1, services))
        over, turns = asyncio.Event(), Turns(gateway.pid)
        probe = asyncio.create_task(slowest(over))
        turns.start()
        took = await gateway.reload()
        over.set()
        waited, longest = await probe, await asyncio.to_thread(turns.end)
        counters = (await gateway.status())["counters"]
        told = counters.get("longest_turn_us")
        told = "" if told is None else f", counters.longest_turn_us {told} so far"
        print(
            f"{what}: POST /v1/reload-config took {1000 * took:.0f} ms; a shard computed at most"
            f" {1000 * longest:.1f} ms between two waits (from outside){told};"
            f" the slowest answer meanwhile {1000 * waited:.1f} ms",
            flush=True,
        )
        if took >= LIMIT and STRICT:
            raise Failed(f"the reload took {took:.2f} s, the limit is {LIMIT:g} s")


async def settled(gateway, descriptors):
    """Of connections to upstreams there are none when they have been idle long enough."""
    await until("the end of the load's connections", lambda: gateway.descriptors() <= descriptors)
    return gateway.descriptors()


async def run(gateway):
    await gateway.start(config(0))
    await gateway.status()
    before = gateway.descriptors()
    with open(f"{DIRECTORY}/wrk.log", "w") as log:
        wrk = await asyncio.create_subprocess_exec(
            "wrk", "-t1", f"-c{CONNECTIONS}", "-d600s", "-s", f"{HERE}/pace.lua", URL,
            stdout=log, preexec_fn=end_with_us,
        )  # fmt: skip
    try:
        await until("the load", lambda: load_of(gateway))
        await many(gateway)
        await huge(gateway)
    finally:
        # Its report comes all the same.
        wrk.send_signal(signal.SIGINT)
        await asyncio.wait_for(wrk.wait(), 20)
    report = open(f"{DIRECTORY}/wrk.log").read()
    print(report, end="")
    if "Non-2xx" in report or "Socket errors" in report or "Requests/sec" not in report:
        raise Failed("requests failed")
    after = await settled(gateway, before)
    resident = gateway.resident_kib()
    print(f"no request failed; descriptors {before} before, {after} after; resident memory {resident} KiB")
    if after != before:
        raise Failed(f"{before} descriptors before, {after} after")
    code = await gateway.stop()
    if code != 0:
        raise Failed(f"the exit code after SIGTERM is {code}")
    print("SIGTERM: exit 0")


async def load_of(gateway):
    return (await gateway.status())["counters"]["requests"] > 10 * CONNECTIONS


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    gateway = Gateway(PROGRAM, DIRECTORY, GATE)
    try:
        await run(gateway)
    finally:
        gateway.kill()


try:
    asyncio.run(main())
except (Failed, TimeoutError) as failed:
    sys.exit(f"FAILED: {failed!s}")
except asyncio.CancelledError:
    sys.exit("FAILED: told to end")
