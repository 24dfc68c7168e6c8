"""A client connection that judges what it gets: one request at a time, and an answer is whole, cut, or none.

Must not know the gateway, nor what an answer means.
"""

import asyncio
import time


class Answer:
    """What became of one request. `fault` is None when the answer is whole, else why not: `cut` (its head came, its end
    did not), `none` (the connection ended before a whole head), `late` (nothing for too long), `garbled` (no HTTP),
    `unasked` (more came than was asked for)."""

    __slots__ = ("begun", "ended", "status", "fields", "body", "fault")

    def __init__(self):
        self.begun, self.ended = time.monotonic(), None
        self.status, self.fields, self.body, self.fault = None, {}, b"", None

    def __repr__(self):
        head = f"{self.status} {self.fault or 'whole'} after {1000 * (self.ended - self.begun):.0f} ms"
        return f"{head}, fields {self.fields}, {len(self.body)} bytes of body: {bytes(self.body[:200])!r}"


class Connection(asyncio.Protocol):
    def __init__(self):
        self.transport = self.waiting = self.answer = None
        self.input, self.pieces, self.usable = bytearray(), [], False

    def connection_made(self, transport):
        self.transport, self.usable = transport, True

    def connection_lost(self, _):
        self.usable = False
        if self.answer is None:
            return
        if self.step == self.read_to_the_end:
            self.pieces.append(bytes(self.input))
            self.finish(None)
        else:
            self.finish("none" if self.answer.status is None else "cut")

    def data_received(self, data):
        self.input += data
        if self.answer is None:
            self.usable = False
            self.transport.abort()
            return
        try:
            while self.answer is not None and self.step():
                pass
        except (ValueError, IndexError):
            self.finish("garbled")

    def ask(self, request, to_head):
        """Sends the bytes of a request; a future with its answer."""
        self.answer, self.to_head = Answer(), to_head
        self.pieces, self.step = [], self.read_head
        self.waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.waiting

    def finish(self, fault):
        answer, self.answer = self.answer, None
        answer.ended, answer.fault, answer.body = time.monotonic(), fault, b"".join(self.pieces)
        if fault or answer.fields.get("connection", "").lower() == "close":
            self.usable = False
            self.transport.abort()
        elif self.input:
            answer.fault, self.usable = "unasked", False
            self.transport.abort()
        if not self.waiting.done():
            self.waiting.set_result(answer)

    def read_head(self):
        end = self.input.find(b"\r\n\r\n")
        if end < 0:
            return False
        line, *fields = self.input[:end].decode("latin-1").split("\r\n")
        del self.input[: end + 4]
        status = int(line.split(" ")[1])
        if status < 200:
            return True
        fields = dict((name.lower(), value.strip()) for name, value in (field.split(":", 1) for field in fields))
        self.answer.status, self.answer.fields = status, fields
        if self.to_head or status in (204, 304):
            self.finish(None)
        elif fields.get("transfer-encoding") == "chunked":
            self.step = self.read_chunk
        elif "content-length" in fields:
            self.left, self.step = int(fields["content-length"]), self.read_length
        else:
            self.step = self.read_to_the_end
        return True

    def read_length(self):
        taken = bytes(self.input[: self.left])
        del self.input[: self.left]
        self.pieces.append(taken)
        self.left -= len(taken)
        if self.left == 0:
            self.finish(None)
        return False

    def read_chunk(self):
        end = self.input.find(b"\r\n")
        if end < 0:
            return False
        size = int(self.input[:end].split(b";")[0], 16)
        if len(self.input) < end + 2 + size + 2:
            return False
        self.pieces.append(bytes(self.input[end + 2 : end + 2 + size]))
        del self.input[: end + 2 + size + 2]
        if size == 0:
            self.finish(None)
        return True

    def read_to_the_end(self):
        return False


class Caller:
    """Asks one thing after the other, on a connection that it keeps as long as it can."""

    def __init__(self, port, patience=10.0):
        self.port, self.patience, self.connection = port, patience, None

    async def ask(self, method, path, identity, body=b"", chunked=False):
        if self.connection is None or not self.connection.usable:
            loop = asyncio.get_running_loop()
            _, self.connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nX-Request-Id: {identity}\r\n"
        if chunked:
            head += "Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif body or method in ("PUT", "POST"):
            head += f"Content-Length: {len(body)}\r\n"
        connection = self.connection
        waiting = connection.ask(head.encode() + b"\r\n" + body, method == "HEAD")
        late = asyncio.get_running_loop().call_later(self.patience, self.give_up, connection)
        answer = await waiting
        late.cancel()
        return answer

    @staticmethod
    def give_up(connection):
        if connection.answer is not None:
            connection.finish("late")

    def close(self):
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()
        self.connection = None
