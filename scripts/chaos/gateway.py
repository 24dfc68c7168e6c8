"""The gateway as a child process: its configuration, its log, its status, its end. And the upstreams that are told what
to do. For the checks that look at a running gateway from outside; it must not know what they look for."""

import asyncio
import ctypes
import datetime
import json
import os
import re
import signal
import sys
import time

from caller import Caller

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE = 20.0
# An answer of the gateway itself that takes longer says that its control thread had no processor.
SLOW = 0.05
PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec there is no time for it.
LIBC = ctypes.CDLL(None)
MOVED = re.compile(r"(\S+) (\S+): (closed|open|half-open) → (closed|open|half-open)(.*)")


class Failed(Exception):
    """What was to be checked does not hold, or could not be checked."""


def end_with_us():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


async def until(what, condition, patience=PATIENCE):
    """Waits until `condition` (which may be a coroutine function) holds."""
    end = time.monotonic() + patience
    while True:
        holds = condition()
        if asyncio.iscoroutine(holds):
            holds = await holds
        if holds:
            return holds
        if time.monotonic() > end:
            raise Failed(f"{what} did not come about within {patience:g} s")
        await asyncio.sleep(0.02)


class Gateway:
    def __init__(self, program, directory, port):
        self.program, self.port = program, port
        self.config, self.log = f"{directory}/config.yaml", f"{directory}/gateway.log"
        self.process, self.admin, self.asking = None, Caller(port, PATIENCE), asyncio.Lock()
        self.wall = time.time() - time.monotonic()
        self.read_to, self.told, self.half = 0, [], b""
        self.slow, self.reloads = [], 0

    def write(self, text):
        with open(self.config + ".new", "w") as file:
            file.write(text)
        os.rename(self.config + ".new", self.config)

    async def start(self, text):
        if not os.access(self.program, os.X_OK):
            raise Failed(f"there is no program {self.program}: build it, or name it in FUSEGATE")
        self.write(text)
        with open(self.log, "wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                self.program, "-c", self.config, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=end_with_us,
            )  # fmt: skip
        await until("the gateway", lambda: self.told_of("listening on") or self.process.returncode is not None)
        if self.process.returncode is not None:
            raise Failed(f"the gateway ended with {self.process.returncode}: {open(self.log).read()}")

    @property
    def pid(self):
        return self.process.pid

    def lines(self):
        """The log so far: the time of each line on the monotonic clock, and its text without time and place."""
        with open(self.log, "rb") as file:
            file.seek(self.read_to)
            fresh = file.read()
        self.read_to += len(fresh)
        *whole, self.half = (self.half + fresh).split(b"\n")
        for line in whole:
            stamp, _, text = line.decode().partition(" ")
            text = text.partition("] ")[2] or text
            try:
                at = datetime.datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() - self.wall
            except ValueError:
                at = time.monotonic()
            self.told.append((at, text))
        return self.told

    def told_of(self, words):
        return sum(words in text for _, text in self.lines())

    def transitions(self, service=None):
        """(time, service, url, from, to, reason) of each, in the order of the log."""
        found = ((at, MOVED.fullmatch(text)) for at, text in self.lines())
        moved = [(at, *match.groups()) for at, match in found if match]
        return [one for one in moved if service in (None, one[1])]

    async def ask(self, method, path):
        async with self.asking:
            answer = await self.admin.ask(method, path, "check")
        if answer.fault:
            raise Failed(f"{method} {path}: {answer}")
        if answer.ended - answer.begun > SLOW:
            self.slow.append((answer.begun, answer.ended))
        return answer

    async def status(self):
        return json.loads((await self.ask("GET", "/v1/status")).body)

    async def upstreams(self, service):
        """The upstreams of a service in the status document, by URL."""
        found = [one for one in (await self.status())["services"] if one["name"] == service]
        return {one["url"]: one for one in found[0]["upstreams"]}

    async def reload(self):
        """By the endpoint; how long it took."""
        begun = time.monotonic()
        answer = await self.ask("POST", "/v1/reload-config")
        took = time.monotonic() - begun
        if answer.status != 200 or json.loads(answer.body)["status"] != "reloaded":
            raise Failed(f"reload: {answer}")
        self.reloads += 1
        return took

    async def hang_up(self):
        """A reload by SIGHUP; how long it took until the log told of it."""
        begun = time.monotonic()
        os.kill(self.pid, signal.SIGHUP)
        # The line of the reload before may not have been written yet, so the sum is what counts.
        self.reloads += 1
        await until("the reload by SIGHUP", lambda: self.told_of("is in force") >= self.reloads)
        return time.monotonic() - begun

    def resident_kib(self):
        for line in open(f"/proc/{self.pid}/status"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise Failed("the gateway is gone")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def stop(self):
        """SIGTERM; the exit code."""
        self.admin.close()
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), PATIENCE)

    def kill(self):
        if self.process and self.process.returncode is None:
            self.process.kill()


class Upstream:
    """A process of upstream.py."""

    def __init__(self, name, port, directory):
        self.name, self.port, self.log = name, port, f"{directory}/{name}.events"
        self.url, self.process = f"http://127.0.0.1:{port}", None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, f"{HERE}/upstream.py", self.name, str(self.port), self.log,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, preexec_fn=end_with_us,
        )  # fmt: skip
        await self.done("its start")

    async def tell(self, command):
        self.process.stdin.write(command.encode() + b"\n")
        await self.done(command)

    async def done(self, what):
        line = await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)
        if line != b"done\n":
            raise Failed(f"upstream {self.name}: {what}: {line!r}")

    async def kill(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def events(self):
        """(time, words) of every event, in the order in which they were written."""
        with open(self.log) as file:
            for line in file:
                at, *words = line.split()
                yield float(at), words
