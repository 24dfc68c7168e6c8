"""An upstream for scripts/check-clients: the echo server of the library `websockets`, with permessage-deflate.

    python3 upstream_websockets.py PORT

It must not know that a gateway stands in front of it.
"""

import asyncio
import sys

import websockets


async def echo(connection):
    async for message in connection:
        await connection.send(message)


async def main():
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=8 << 20):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
