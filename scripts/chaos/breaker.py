"""The run of scripts/check-breaker: how many failures clients see of a dead upstream, how often it is probed, and in
which order three healthy ones take turns, with 64 connections on four shards.

    python3 breaker.py FUSEGATE DIRECTORY GATEWAY_PORT FIRST_UPSTREAM_PORT REQUESTS

It must not know how the gateway works: what it counts is what clients see, what upstreams write down, and the log.
"""

import asyncio
import collections
import signal
import sys
import time

from caller import Caller
from gateway import Failed, Gateway, Upstream, until

PROGRAM, DIRECTORY, GATE, FIRST, REQUESTS = sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:6])
CLIENTS, THRESHOLD, COOLDOWN, ROUNDS = 64, 5, 2.0, 4
# Requests per second of a service while its breaker is open: a probe is due to be noticed within a few milliseconds.
RATE = 300.0
# How late a probe may be: nobody asks for it at the very moment, and the machine has other things to do.
LATE = 1.0


class Variant:
    """A service with one healthy and one dead upstream, and its clients."""

    def __init__(self, name, healthy, dead, status):
        self.name, self.healthy, self.dead, self.status = name, healthy, dead, status
        self.failures, self.answered, self.wrong = [], 0, []
        self.running, self.paced_from = True, None

    def config(self):
        return f"""{self.name}:
  upstreams: ["{self.healthy.url}", "{self.dead.url}"]
  retries: {{attempts: 0}}
  circuit_breaker: {{failure_threshold: {THRESHOLD}, cooldown: {COOLDOWN:g}s}}
"""

    async def client(self, number):
        caller, due, count = Caller(GATE), 0.0, 0
        while self.running:
            count += 1
            answer = await caller.ask("GET", f"/v1/proxy/{self.name}/small", f"{self.name}-{number}-{count}")
            if answer.fault or answer.status not in (200, self.status):
                self.wrong.append(answer)
            elif answer.status == 200:
                self.answered += 1
            else:
                self.failures.append(answer)
            # Without a pace at first: the breaker is to open while all clients are under way.
            if self.paced_from is not None:
                due = max(due + CLIENTS / RATE, self.paced_from + number / RATE)
                await asyncio.sleep(max(due - time.monotonic(), 0))
        caller.close()

    def moves(self, gateway, before, after):
        """When the breaker of the dead upstream did so."""
        moved = gateway.transitions(self.name)
        return [at for at, _, url, *states, _ in moved if url == self.dead.url and states == [before, after]]

    def judge(self, gateway):
        if self.wrong:
            raise Failed(f"{self.name}: {len(self.wrong)} unexpected answers, the first: {self.wrong[0]}")
        strangers = [one for one in gateway.transitions(self.name) if one[2] != self.dead.url]
        if strangers:
            raise Failed(f"{self.name}: the breaker of the healthy upstream moved: {strangers}")
        opened = self.moves(gateway, "closed", "open")
        probed = self.moves(gateway, "open", "half-open")
        refused = self.moves(gateway, "half-open", "open")
        if len(opened) != 1 or len(refused) != ROUNDS or len(probed) != ROUNDS + 1:
            counts = f"opened {len(opened)} times, {len(probed)} probes, {len(refused)} of them failed"
            raise Failed(f"{self.name}: {counts}")
        first = opened[0]
        # The log has its own times, so half a cooldown parts those under way at the opening from the probes.
        early = [one for one in self.failures if one.begun < first + COOLDOWN / 2]
        late = sorted(one.begun for one in self.failures if one.begun >= first + COOLDOWN / 2)
        print(
            f"{self.name}: {len(early)} failures before the breaker was open for everybody (threshold {THRESHOLD},"
            f" {CLIENTS} connections), then {len(late)} in {ROUNDS} cooldowns and one more, {self.answered} answers 200"
        )
        if not THRESHOLD <= len(early) <= THRESHOLD + CLIENTS:
            raise Failed(f"{self.name}: {len(early)} failures before the breaker was open")
        if len(late) != ROUNDS:
            raise Failed(f"{self.name}: {len(late)} failures afterwards, there were {ROUNDS} failed probes")
        gaps = [after - before for before, after in zip([first, *late], late)]
        print(f"{self.name}: probes after {', '.join(f'{gap:.3f}' for gap in gaps)} s")
        # A probe's failure begins the next cooldown, and it was sent before that.
        if not all(COOLDOWN - 0.1 < gap < COOLDOWN + LATE for gap in gaps):
            raise Failed(f"{self.name}: one probe for each cooldown of {COOLDOWN:g} s is what there should be")
        return len(early), late

    def judge_upstream(self, early, probes):
        """What the dead upstream itself has counted: the failures that clients saw and no request more."""
        ill = [at for at, words in self.dead.events() if words[0] == "answer" and words[4] == str(self.status)]
        counted = len([at for at in ill if at < probes[0]])
        after = [len([at for at in ill if probe <= at < probe + COOLDOWN / 2]) for probe in probes]
        print(f"{self.name}: the upstream itself counted {counted} requests, then {after} at the probes")
        if counted != early or after != [1] * len(probes) or counted + sum(after) != len(ill):
            raise Failed(f"{self.name}: clients saw {early} failures and {len(probes)} probes")


async def breakers(gateway, variants):
    tasks = [asyncio.create_task(one.client(number)) for one in variants for number in range(CLIENTS)]
    answering, refusing = variants
    try:
        for one in variants:
            await until(f"traffic of {one.name}", lambda: one.answered > 4 * CLIENTS)
        await answering.dead.tell("late 500 30")
        await refusing.dead.kill()
        for one in variants:
            await until(f"the opening of {one.name}", lambda: one.moves(gateway, "closed", "open"))
            one.paced_from = time.monotonic()
        for one in variants:
            # Well after the last failed probe, and before the next.
            refused = await until(
                f"{ROUNDS} failed probes of {one.name}",
                lambda: one.moves(gateway, "half-open", "open")[ROUNDS - 1 :],
                ROUNDS * (COOLDOWN + LATE) + 5,
            )
            if len(refused) > 1:
                raise Failed(f"{one.name}: more than {ROUNDS} probes")
        await answering.dead.tell("ok")
        await refusing.dead.start()
        for one in variants:
            await until(f"the recovery of {one.name}", lambda: one.moves(gateway, "half-open", "closed"))
    finally:
        for one in variants:
            one.running = False
        _, late = await asyncio.wait(tasks, timeout=10)
        for task in late:
            task.cancel()
    for task in tasks:
        task.result()
    for one in variants:
        early, probes = one.judge(gateway)
        if one is answering:
            one.judge_upstream(early, probes)


async def turns(gateway, upstreams):
    names = [one.name for one in upstreams]
    callers = [Caller(GATE) for _ in range(CLIENTS)]
    before = (await gateway.status())["counters"]

    async def ask(caller, identity):
        answer = await caller.ask("GET", "/v1/proxy/fair/small", identity)
        if answer.fault or answer.status != 200:
            raise Failed(f"fair: {answer}")
        return answer.fields["x-upstream"]

    # One request at a time, each from the next connection: the order itself.
    order = [await ask(callers[number % CLIENTS], f"one-{number}") for number in range(REQUESTS // 10)]
    start = names.index(order[0])
    if order != [names[(start + number) % len(names)] for number in range(len(order))]:
        raise Failed("fair: one request after the other did not go a b c a b c …")
    print(f"fair: {len(order)} requests one after the other over {CLIENTS} connections: always a b c a b c …")

    counts, numbers = collections.Counter(), iter(range(REQUESTS))

    async def client(caller):
        for number in numbers:
            counts[await ask(caller, f"all-{number}")] += 1

    begun = time.monotonic()
    await asyncio.gather(*(client(caller) for caller in callers))
    took = time.monotonic() - begun
    for caller in callers:
        caller.close()
    print(f"fair: {REQUESTS} requests over {CLIENTS} connections in {took:.1f} s: {dict(sorted(counts.items()))}")
    if counts.total() != REQUESTS or max(counts.values()) - min(counts.values()) > 1:
        raise Failed("fair: the counts differ by more than one")
    # In the order in which they arrived: a request that has its turn and has not arrived is under way, and of those
    # there are no more than connections.
    arrived = sorted(
        (at, one.name)
        for one in upstreams
        for at, words in one.events()
        if words[0] == "got" and words[1].startswith("all-")
    )
    tally, spread = collections.Counter(dict.fromkeys(names, 0)), 0
    for _, name in arrived:
        tally[name] += 1
        spread = max(spread, max(tally.values()) - min(tally.values()))
    print(f"fair: at no moment had one upstream got more than {spread} requests more than another")
    if tally != counts or spread > CLIENTS:
        raise Failed(f"fair: by order of arrival {dict(tally)}, at most {spread} apart")
    after = (await gateway.status())["counters"]
    if after["retries"] != before["retries"]:
        raise Failed("fair: there were retries among healthy upstreams")


async def run(gateway, upstreams):
    for one in upstreams:
        await one.start()
    a, b, c, answers, refuses = upstreams
    variants = [Variant("answers-500", a, answers, 500), Variant("refuses", b, refuses, 502)]
    text = "".join(one.config() for one in variants)
    text += f'fair: ["{a.url}", "{b.url}", "{c.url}"]\n'
    await gateway.start(text + f'gateway: {{listen: "127.0.0.1:{GATE}", workers: 4}}\n')
    await breakers(gateway, variants)
    await turns(gateway, [a, b, c])
    code = await gateway.stop()
    if code != 0:
        raise Failed(f"the exit code after SIGTERM is {code}")
    print("SIGTERM: exit 0")


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    gateway = Gateway(PROGRAM, DIRECTORY, GATE)
    upstreams = [Upstream(name, FIRST + number, DIRECTORY) for number, name in enumerate("abcde")]
    try:
        await run(gateway, upstreams)
    finally:
        gateway.kill()
        for one in upstreams:
            await one.kill()


try:
    asyncio.run(main())
except (Failed, TimeoutError) as failed:
    sys.exit(f"FAILED: {failed!s}")
except asyncio.CancelledError:
    sys.exit("FAILED: told to end")
