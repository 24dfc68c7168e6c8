"""The run of scripts/check-chaos: upstreams that fail at random, clients, reloads, and a judge at the end.

    python3 run.py FUSEGATE DIRECTORY GATEWAY_PORT FIRST_UPSTREAM_PORT

Environment: SEED, CHAOS_SECONDS (both phases together), CHAOS_RETRIES (the attempts of both phases instead of theirs),
CHAOS_PHASES (A, B or AB).

Every random decision comes from SEED, so the same seed does the same things to the same upstreams in the same order and
sends the same requests; when exactly they meet is up to the machine. It must not know how the gateway works.
"""

import asyncio
import collections
import hashlib
import os
import random
import signal
import sys
import time

import judge
from caller import Caller
from gateway import Failed, Gateway, Upstream, until
from judge import Fault, Policy, Request

SERVICE = "shop"
UPSTREAMS, CLIENTS, RATE = 4, 32, 400.0
THRESHOLD = 5
# What an upstream did is over when no request is left that met it: a connect and an answer waited for in vain.
OVER = 1.7
COOLDOWNS = {"1 s": 1.0, "2 s": 2.0}
KINDS = ["kill", "stop", "queue", "slow", "status", "reset", "close", "cut"]

PROGRAM, DIRECTORY, GATE, FIRST = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
SEED = int(os.environ.get("SEED") or random.randrange(1 << 32))
SECONDS = float(os.environ.get("CHAOS_SECONDS", 30))
RETRIES = os.environ.get("CHAOS_RETRIES")
PHASES = os.environ.get("CHAOS_PHASES", "AB")


class Phase:
    """One set of retry settings. `kinds` are the faults that belong to it, `harmed` is how many upstreams suffer at
    once at most; one whose harm is over counts for `calm` seconds more."""

    def __init__(self, name, attempts, on, per_try, kinds, harmed, calm):
        self.name, self.kinds, self.harmed, self.calm = name, kinds, harmed, calm
        self.policy = Policy(attempts, on, per_try or 1.0)
        attempts = attempts if RETRIES is None else int(RETRIES)
        if per_try:
            on = f", on: [{', '.join(on)}], per_try_timeout: {1000 * per_try:.0f}ms, budget: 100%"
            self.retries = f"\n  retries: {{attempts: {attempts}{on}}}"
        else:
            self.retries = "" if RETRIES is None else f"\n  retries: {{attempts: {attempts}}}"


# A: what can be tried again is. An invalid head is not among it, so no upstream sends one. A request has three tries,
# so it must not meet a third upstream that fails it, and three tries take less than `calm`.
# B: the defaults.
ALL = {
    "A": Phase("A", 2, ["connect", "unsent", "closed", "timeout", "5xx"], 0.5, KINDS, harmed=2, calm=1.7),
    "B": Phase("B", 1, ["connect", "tls", "unsent", "closed"], None, [*KINDS, "head"], harmed=3, calm=0.3),
}


class Settings:
    """The configuration that the next reload brings; each differs from the one before."""

    def __init__(self, phase):
        self.phase, self.cooldown, self.other = phase, 1, False
        self.random = random.Random(f"{SEED} reloads")

    def flip(self):
        if self.random.random() < 0.5:
            self.cooldown = 3 - self.cooldown
        else:
            self.other = not self.other

    def text(self):
        urls = ", ".join(f'"http://127.0.0.1:{FIRST + number}"' for number in range(UPSTREAMS))
        text = f"""{SERVICE}:
  upstreams: [{urls}]
  circuit_breaker: {{failure_threshold: {THRESHOLD}, cooldown: {self.cooldown}s}}
  timeouts: {{connect: 500ms, response: 1s, idle: 1s}}{self.phase.retries}
"""
        if self.other:
            text += f"other: [{urls}]\n"
        return text + f'gateway: {{listen: "127.0.0.1:{GATE}", workers: 2}}\n'


class Chaos:
    def __init__(self):
        self.gateway = Gateway(PROGRAM, DIRECTORY, GATE)
        self.upstreams = [Upstream(f"up-{number}", FIRST + number, DIRECTORY) for number in range(UPSTREAMS)]
        self.phase = ALL[PHASES[0]]
        self.settings = Settings(self.phase)
        self.requests, self.faults = [], []
        self.harmed_until = dict.fromkeys(self.upstreams, 0.0)
        self.harmed = set()
        self.under_way = {}
        self.reloads = collections.Counter()
        self.slowest_reload = 0.0
        self.loading = True
        self.busy = asyncio.Lock()
        self.reloading = asyncio.Lock()

    # Clients

    async def client(self, number):
        dice = random.Random(f"{SEED} client {number}")
        caller = Caller(GATE)
        loop, step = asyncio.get_running_loop(), CLIENTS / RATE
        due, count = loop.time() + step * number / CLIENTS, 0
        while self.loading:
            await asyncio.sleep(max(due - loop.time(), 0))
            due = max(due + step, loop.time())
            count += 1
            self.under_way[number] = time.monotonic()
            await self.request(caller, f"{self.phase.name}-{number}-{count}", dice)
            del self.under_way[number]
        caller.close()

    async def request(self, caller, identity, dice):
        request = Request()
        request.id, request.phase = identity, self.phase.name
        kind, size, body, chunked = dice.random(), dice.randrange(100_000, 400_000), b"", False
        request.method, request.path = "GET", "/small"
        if kind < 0.10:
            request.path = f"/bytes/{size}"
        elif kind < 0.15:
            request.path = f"/chunked/{size}"
        elif kind < 0.22:
            request.method = "HEAD"
        elif kind < 0.40:
            request.method, request.path = "PUT" if kind < 0.28 else "POST", "/echo"
            body, chunked = dice.randbytes(dice.randrange(1, 3000)), dice.random() < 0.3
        answer = await caller.ask(
            request.method, f"/v1/proxy/{SERVICE}{request.path}", identity, body=body, chunked=chunked
        )
        request.begun, request.ended = answer.begun, answer.ended
        request.upstream = answer.fields.get("x-upstream")
        request.classes, request.answer = set(), None
        request.seen = self.look_at(request, answer, body)
        if request.seen != "ok":
            request.answer = answer
        self.requests.append(request)

    @staticmethod
    def look_at(request, answer, body):
        if answer.fault == "cut" and answer.status == 200 and request.upstream:
            return "cut"
        if answer.fault:
            return f"no valid answer ({answer.fault})"
        if answer.status >= 500:
            request.classes = {"5xx"} if request.upstream else judge.classes(answer)
            return "error"
        if answer.status != 200:
            return f"status {answer.status}"
        if request.method == "HEAD":
            return "ok"
        if request.path == "/small":
            expected = f"{request.upstream} {request.id}\n".encode()
        elif request.path == "/echo":
            expected = f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode()
        else:
            unit, size = request.id.encode() + b" ", int(request.path.rpartition("/")[2])
            expected = (unit * (size // len(unit) + 1))[:size]
        return "ok" if answer.body == expected else "another body than was sent"

    # Faults

    async def harm(self, slot, end):
        """One after the other, until `end`. There are as many of these tasks as upstreams may be harmed at once."""
        dice = random.Random(f"{SEED} {self.phase.name} faults {slot}")
        deck = []
        while True:
            deck = deck or dice.sample(self.phase.kinds, len(self.phase.kinds))
            kind, upstream = deck.pop(), dice.choice(self.upstreams)
            lasting, pause, detail = dice.uniform(0.3, 2.0), dice.uniform(0.0, 0.5), self.details(kind, dice)
            await asyncio.sleep(pause)
            if not await self.may_harm(upstream, end - min(lasting, 1.0)):
                return
            fault = Fault(upstream.name, kind, time.monotonic(), detail)
            self.faults.append(fault)
            await self.begin(upstream, kind, detail)
            await asyncio.sleep(min(lasting, max(end - time.monotonic(), 0.2)))
            await self.recover(upstream, kind)
            fault.ended = time.monotonic()
            self.harmed_until[upstream] = fault.ended
            self.harmed.discard(upstream)

    @staticmethod
    def details(kind, dice):
        return {"slow": str(dice.randrange(100, 2001)), "status": str(dice.choice([500, 503]))}.get(kind, "")

    async def may_harm(self, upstream, end):
        """Waits until harm to this one leaves another that is healthy, with a closed breaker; in vain after `end`."""
        while time.monotonic() < end:
            async with self.busy:
                sore = self.sore(self.phase.calm)
                if upstream not in sore and len(sore) < self.phase.harmed:
                    known = await self.gateway.upstreams(SERVICE)
                    healthy = set(self.upstreams) - self.sore(OVER) - {upstream}
                    if any(known[one.url]["state"] == "closed" for one in healthy):
                        self.harmed.add(upstream)
                        return True
            await asyncio.sleep(0.05)
        return False

    def sore(self, calm):
        """Those that are harmed, or were so long ago at most."""
        since = time.monotonic() - calm
        return {one for one in self.upstreams if one in self.harmed or self.harmed_until[one] > since}

    @staticmethod
    async def begin(upstream, kind, detail):
        if kind == "kill":
            await upstream.kill()
        elif kind in ("stop", "queue"):
            if kind == "queue":
                await upstream.tell("backlog 1")
            os.kill(upstream.process.pid, signal.SIGSTOP)
        else:
            await upstream.tell(f"{kind} {detail}")

    @staticmethod
    async def recover(upstream, kind):
        if kind == "kill":
            await upstream.start()
        elif kind in ("stop", "queue"):
            os.kill(upstream.process.pid, signal.SIGCONT)
            await upstream.tell("backlog 256")
        else:
            await upstream.tell("ok")

    async def drop(self, end):
        """Now and then an upstream closes its idle connections, as any may: that harms nobody."""
        dice = random.Random(f"{SEED} {self.phase.name} drops")
        while time.monotonic() < end:
            await asyncio.sleep(dice.uniform(0.1, 0.8))
            async with self.busy:
                upstream = dice.choice(self.upstreams)
                if upstream not in self.harmed:
                    await upstream.tell("drop")

    # Reloads

    async def reload(self):
        by_endpoint = self.reloads["endpoint"] <= self.reloads["SIGHUP"]
        async with self.reloading:
            self.settings.flip()
            self.gateway.write(self.settings.text())
            took = await (self.gateway.reload() if by_endpoint else self.gateway.hang_up())
        self.reloads["endpoint" if by_endpoint else "SIGHUP"] += 1
        self.slowest_reload = max(self.slowest_reload, took)

    async def keep_reloading(self, end):
        while time.monotonic() < end:
            begun = time.monotonic()
            await self.reload()
            await asyncio.sleep(max(begun + 1.0 - time.monotonic(), 0))

    # The whole

    async def watch(self, end):
        """The gateway's control thread is asked all the time, so that it is known when it is late."""
        while time.monotonic() < end:
            await self.gateway.status()
            await asyncio.sleep(0.05)

    async def well_again(self):
        """No request is left that has seen a fault, and no breaker that remembers one."""
        last = max((fault.ended for fault in self.faults), default=0)
        if any(begun < last for begun in self.under_way.values()):
            return False
        return all(one["state"] == "closed" for one in (await self.gateway.upstreams(SERVICE)).values())

    async def run_phase(self, name):
        self.phase = self.settings.phase = ALL[name]
        if name != PHASES[0]:
            await self.reload()
        end = time.monotonic() + SECONDS / len(PHASES)
        print(f"phase {name}: retries{self.phase.retries.partition('retries')[2] or ' as by default'}", flush=True)
        tasks = [self.harm(slot, end) for slot in range(self.phase.harmed)]
        await together(*tasks, self.drop(end), self.keep_reloading(end), self.watch(end))
        await until("the end of every fault: all breakers closed", self.well_again)

    async def run(self):
        for upstream in self.upstreams:
            await upstream.start()
        await self.gateway.start(self.settings.text())
        clients = [asyncio.create_task(self.client(number)) for number in range(CLIENTS)]
        try:
            # The accounts of retries begin empty, and the memory of a process that has done nothing says nothing.
            await until("a second of traffic", lambda: len(self.requests) >= RATE)
            before = (self.gateway.resident_kib(), self.gateway.descriptors())
            await together(self.phases(), watched=clients)
        finally:
            self.loading = False
            _, late = await asyncio.wait(clients, timeout=15)
            for client in late:
                client.cancel()
        for client in clients:
            client.result()
        await self.finish(before)

    async def phases(self):
        for name in PHASES:
            await self.run_phase(name)

    async def finish(self, before):
        wrong = []

        async def settled():
            self.last = await self.gateway.upstreams(SERVICE)
            return all(one["in_flight"] == 0 for one in self.last.values())

        try:
            await until("an end of all exchanges", settled, 5)
        except Failed as failed:
            wrong.append(f"{failed}: {[one['in_flight'] for one in self.last.values()]} in flight")
        status = await self.gateway.status()
        for url, one in self.last.items():
            if one["state"] != "closed":
                wrong.append(f"{url} is {one['state']} in the end")
            if "settled" in one and one["settled"] != one["attempts"]:
                wrong.append(f"{url}: {one['attempts']} attempts, {one['settled']} permits settled")
        for counter in ("notices_lost", "panics"):
            if status["counters"][counter]:
                wrong.append(f"counters.{counter} is {status['counters'][counter]}")
        after = (self.gateway.resident_kib(), self.gateway.descriptors())
        if self.gateway.told_of("is in force") != self.reloads.total():
            wrong.append(f"{self.gateway.told_of('is in force')} configurations came into force")
        code = await self.gateway.stop()
        if code != 0:
            wrong.append(f"the exit code after SIGTERM is {code}")
        wrong += [text for _, text in self.gateway.lines() if "panicked" in text or "dropped" in text]
        transitions = self.gateway.transitions()
        reasons, late, last = judge.judge_transitions(transitions, THRESHOLD, COOLDOWNS, self.gateway.slow)
        wrong += reasons
        wrong += [f"the log leaves {' '.join(one)} {state}" for one, state in last.items() if state != "closed"]
        verdict = judge.Judge(
            self.requests, self.faults, self.upstreams, {name: one.policy for name, one in ALL.items()}, transitions,
            SERVICE,
        )  # fmt: skip
        verdict.judge()
        verdict.exceptions += collections.Counter({"a cooldown that began while the log was late": late})
        self.report(verdict, status, transitions, before, after, code)
        for what in wrong:
            print(f"VIOLATION: {what}")
        for what, request in verdict.violations[:20]:
            print("VIOLATION:", *verdict.explain(what, request, self.gateway.lines()), sep="\n")
        count = len(wrong) + len(verdict.violations)
        print(f"violations: {count}")
        if count:
            raise Failed(f"{count} violations with SEED={SEED}; what is known of the first 20 is above")

    def report(self, verdict, status, transitions, before, after, code):
        table = collections.Counter()
        for one in self.requests:
            table[(one.phase, one.method, one.seen if one.seen != "error" else f"error {one.answer.status}")] += 1
        rows("requests by phase, method and result", table)
        rows("errors that follow from what upstreams did", verdict.explained)
        rows("exceptions", verdict.exceptions)
        rows("faults", collections.Counter(f"{fault.kind}" for fault in self.faults))
        rows("transitions", collections.Counter(f"{before} → {after}" for _, _, _, before, after, _ in transitions))
        drops = sum(len(drops) for drops in verdict.drops.values())
        counters = status["counters"]
        print(
            f"idle connections dropped {drops} times; reloads: {self.reloads['endpoint']} by endpoint,"
            f" {self.reloads['SIGHUP']} by SIGHUP, the slowest took {1000 * self.slowest_reload:.0f} ms"
        )
        print(
            f"retries: {counters['retries']}, stale connections: {counters['stale']}, attempts:"
            f" {sum(one['attempts'] for one in self.last.values())}, failures:"
            f" {sum(one['failures'] for one in self.last.values())}, in flight in the end:"
            f" {sum(one['in_flight'] for one in self.last.values())}, exit code: {code}"
        )
        print(f"resident memory {before[0]} -> {after[0]} KiB, descriptors {before[1]} -> {after[1]}")


def rows(title, counter):
    print(f"{title}:")
    for key, count in sorted(counter.items(), key=lambda item: str(item[0])):
        print(f"{count:9}  {' '.join(key) if isinstance(key, tuple) else key}")


async def together(*work, watched=()):
    """All of it, or the first failure of it or of the `watched` tasks, which do not end by themselves."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        left = set(tasks)
        while left:
            done, _ = await asyncio.wait({*left, *watched}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            left -= done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def main():
    chaos = Chaos()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    print(f"SEED={SEED}, {SECONDS:g} s", flush=True)
    try:
        await chaos.run()
    finally:
        chaos.gateway.kill()
        for upstream in chaos.upstreams:
            await upstream.kill()


try:
    asyncio.run(main())
except (Failed, TimeoutError) as failed:
    sys.exit(f"FAILED: {failed!s}")
except asyncio.CancelledError:
    sys.exit("FAILED: told to end")
