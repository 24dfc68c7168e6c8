"""The library `websockets` on both ends of the gateway, for scripts/check-clients: permessage-deflate is agreed on by
the ends, the gateway only passes bytes.

    python3 with_websockets.py HOST:PORT

Prints `what<TAB>result`, a line for each thing that was shown. It must not know how the gateway works inside.
"""

import asyncio
import os
import sys

import websockets

URL = f"ws://{sys.argv[1]}/v1/proxy/websockets/"


async def main():
    async with websockets.connect(URL, max_size=8 << 20, ping_interval=0.2) as connection:
        agreed = connection.response.headers.get("Sec-WebSocket-Extensions", "")
        assert "permessage-deflate" in agreed, agreed
        sent = ["text" * 1000, "ä€😀", os.urandom(1 << 20), "x" * (1 << 20)] * 3

        async def send():
            for message in sent:
                await connection.send(message)

        # Both directions at once.
        sending = asyncio.create_task(send())
        for message in sent:
            assert await asyncio.wait_for(connection.recv(), 10) == message
        await sending
        await asyncio.wait_for(await connection.ping(), 5)
    assert connection.close_code == 1000, connection.close_code

    async def one(number):
        async with websockets.connect(URL) as connection:
            for count in range(20):
                await connection.send(f"{number} {count}")
                assert await asyncio.wait_for(connection.recv(), 10) == f"{number} {count}"

    await asyncio.gather(*(one(number) for number in range(50)))


asyncio.run(main())
print("both ends, permessage-deflate", "12 messages up to 1 MiB both ways at once, ping, close 1000", sep="\t")
print("50 tunnels at once", "20 messages each, none mixed up", sep="\t")
