"""An upstream that can be told to misbehave, and that writes down what it does with each request before it does it.

    python3 upstream.py NAME PORT LOG

It serves HTTP/1.1 with keep-alive on 127.0.0.1:PORT: `/small` answers with the name and the request's id, `/bytes/N`
with N bytes made of the id, `/chunked/N` with the same in chunks, `/echo` with the length and checksum of the request's
body. Commands come line by line on stdin, each is answered with `done` when it is in effect:

    ok                as it should be
    slow MS           every answer waits so long
    status CODE       every answer has this status
    reset             a request is answered by a reset
    close             a request is answered by the end of the connection
    head              the connection ends inside the head of the response
    cut               the connection ends inside the body of the response
    late CODE MS      every answer has this status and waits so long
    drop              once: the connections that are idle are closed
    backlog N         how many connections may wait to be accepted

Every event is one line in LOG, written with one call to a file opened for appending: so it is there whatever happens to
this process afterwards, and lines of a restarted process follow those of the killed one. A line is

    SECONDS EVENT [ID METHOD CONNECTION [MORE]]

with the monotonic clock of the machine and, in the order of a request's life, the events `got` (its head is complete),
`answer STATUS`, `close`, `reset`, `head`, `cut` (about to do so), `gone` (the peer left before the answer). Besides
them `start`, `drop CONNECTIONS`, and `stall SECONDS`: nothing ran here for so long, because the process was frozen or
the machine is overloaded.

It ends with stdin, and with its parent. It must not know the gateway.
"""

import asyncio
import ctypes
import hashlib
import os
import signal
import socket
import struct
import sys
import time

NAME, PORT = sys.argv[1], int(sys.argv[2])
LOG = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
PR_SET_PDEATHSIG = 1
BEAT, STALL = 0.02, 0.1

mode, argument, wait = "ok", 0, 0.0
connections = set()


def note(event):
    os.write(LOG, f"{time.monotonic():.6f} {event}\n".encode())


class Connection(asyncio.Protocol):
    count = 0

    def connection_made(self, transport):
        Connection.count += 1
        self.number, self.transport, self.input = Connection.count, transport, b""
        self.request = self.timer = None
        self.began = False
        connections.add(self)

    def data_received(self, data):
        self.input += data
        self.read()

    def connection_lost(self, _):
        connections.discard(self)
        if self.timer:
            self.timer.cancel()
        if self.request and self.began:
            self.note("gone")

    def note(self, event, more=""):
        identity, method = self.request[:2]
        note(f"{event} {identity} {method} {self.number}{more and f' {more}'}")

    def read(self):
        """Takes a request when all of it is there. The gateway does not pipeline."""
        if self.timer or self.transport.is_closing():
            return
        if not self.began:
            end = self.input.find(b"\r\n\r\n")
            if end < 0:
                return
            line, *fields = self.input[:end].decode("latin-1").split("\r\n")
            method, path, _ = line.split(" ")
            fields = dict((name.lower(), value.strip()) for name, value in (field.split(":", 1) for field in fields))
            self.request = (fields.get("x-request-id", "-"), method, path, fields)
            self.input, self.began = self.input[end + 4 :], True
            self.note("got")
        fields = self.request[3]
        if fields.get("transfer-encoding") == "chunked":
            body = dechunked(self.input)
            if body is None:
                return
            self.input = b""
        else:
            length = int(fields.get("content-length", 0))
            if len(self.input) < length:
                return
            body, self.input = self.input[:length], self.input[length:]
        if mode == "slow" or mode == "late":
            self.timer = asyncio.get_running_loop().call_later(wait, self.act, body)
        else:
            self.act(body)

    def act(self, body):
        self.timer = None
        _, method, path, _ = self.request
        if mode == "reset":
            self.note("reset")
            self.end(reset=True)
        elif mode == "close":
            self.note("close")
            self.end()
        elif mode == "head":
            self.note("head")
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Len")
            self.end()
        else:
            status = argument if mode in ("status", "late") else 200
            head, content = self.response(status, body)
            if mode == "cut" and method != "HEAD" and len(content) > 1:
                self.note("cut")
                self.transport.write(head + content[: len(content) // 2])
                self.end()
            else:
                self.note("answer", status)
                self.transport.write(head + (b"" if method == "HEAD" else content))
                self.request, self.began = None, False

    def end(self, reset=False):
        self.request, self.began = None, False
        if reset:
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.transport.abort()
        else:
            self.transport.close()

    def response(self, status, body):
        identity, _, path, _ = self.request
        kind, _, size = path.lstrip("/").partition("/")
        framing = None
        if status != 200:
            content = b"on purpose\n"
        elif kind in ("bytes", "chunked"):
            unit = identity.encode() + b" "
            content = (unit * (int(size) // len(unit) + 1))[: int(size)]
            if kind == "chunked":
                framing = "Transfer-Encoding: chunked"
                pieces = (content[at : at + 50000] for at in range(0, len(content), 50000))
                content = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        elif kind == "echo":
            content = f"{len(body)} {hashlib.sha256(body).hexdigest()}\n".encode()
        else:
            content = f"{NAME} {identity}\n".encode()
        framing = framing or f"Content-Length: {len(content)}"
        return f"HTTP/1.1 {status} As told\r\nX-Upstream: {NAME}\r\n{framing}\r\n\r\n".encode(), content


def dechunked(data):
    """The body, when it is there to its end."""
    body = b""
    while True:
        size, found, data = data.partition(b"\r\n")
        if not found:
            return None
        length = int(size.split(b";")[0], 16)
        if len(data) < length + 2:
            return None
        if length == 0:
            return body
        body, data = body + data[:length], data[length + 2 :]


def obey(line, listener):
    global mode, argument, wait
    word, *numbers = line.split()
    numbers = [int(number) for number in numbers]
    if word == "drop":
        idle = [connection for connection in connections if not connection.began]
        note(f"drop {len(idle)}")
        for connection in idle:
            connection.transport.close()
    elif word == "backlog":
        listener.listen(numbers[0])
    else:
        mode = word
        argument = numbers[0] if numbers else 0
        wait = numbers[-1] / 1000 if numbers else 0.0
    os.write(1, b"done\n")


async def beat():
    before = time.monotonic()
    while True:
        await asyncio.sleep(BEAT)
        now = time.monotonic()
        if now - before > BEAT + STALL:
            note(f"stall {now - before:.3f}")
        before = now


async def main():
    loop = asyncio.get_running_loop()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind(("127.0.0.1", PORT))
    server = await loop.create_server(Connection, sock=listener, backlog=256)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    beating = loop.create_task(beat())
    note("start")
    os.write(1, b"done\n")
    while line := await commands.readline():
        obey(line.decode(), listener)
    beating.cancel()
    server.close()


ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
asyncio.run(main())
