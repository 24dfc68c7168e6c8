"""The library `websocket-client` through the gateway, for scripts/check-clients: against the WebSocket echo of the Node
upstream, straight and through nginx; and while the gateway reloads.

    python3 with_websocket_client.py HOST:PORT CONFIG

CONFIG is the gateway's file, to which a service is added and from which it is taken again.
Prints `what<TAB>result`, a line for each thing that was shown. It must not know how the gateway works inside.
"""

import os
import sys
import time
import urllib.request

import websocket

address, config = sys.argv[1:]


def shown(what, result):
    print(what, result, sep="\t", flush=True)


def connect(path):
    return websocket.create_connection(f"ws://{address}/v1/proxy/{path}", timeout=10)


for where, path in (("node", "node/ws"), ("node behind nginx", "nginx/node/ws")):
    ws = connect(path)
    for message in ("", "text", "ä€😀", "x" * 125, "x" * 126, "x" * 65535, "x" * 65536):
        ws.send(message)
        assert ws.recv() == message
    for message in (b"\0\xff", os.urandom(5000)):
        ws.send_binary(message)
        assert ws.recv() == message
    shown(f"text and binary, {where}", "9 messages of 0 to 65536 bytes echoed")
    large = os.urandom(1 << 20)
    for _ in range(5):
        ws.send_binary(large)
        assert ws.recv() == large
    shown(f"1 MiB messages, {where}", "5 both ways, same bytes")
    ws.ping(b"here")
    opcode, frame = ws.recv_data_frame(control_frame=True)
    assert opcode == websocket.ABNF.OPCODE_PONG and frame.data == b"here", (opcode, frame.data)
    ws.send("ping me")
    assert ws.recv() == "ponged"
    shown(f"ping, {where}", "pong of the upstream and of the client")
    ws.send_close(1000, b"done")
    opcode, data = ws.recv_data(control_frame=True)
    assert opcode == websocket.ABNF.OPCODE_CLOSE and data == b"\x03\xe8done", (opcode, data)
    ws.sock.settimeout(5)
    assert ws.sock.recv(1) == b"", "no end of the connection behind the close"
    ws.shutdown()
    shown(f"close handshake, {where}", "close frame with code and reason echoed, then the end of the connection")

plain = open(config).read()
ws = connect("node/ws")
reloads = echoed = 0
end = time.monotonic() + 3
while time.monotonic() < end:
    due = time.monotonic() + 0.05
    while time.monotonic() < due:
        ws.send_binary(large[: 1 + echoed * 997 % 50000])
        assert ws.recv() == large[: 1 + echoed * 997 % 50000]
        echoed += 1
    with open(config, "w") as file:
        file.write(plain if reloads % 2 else plain.replace("node:", "other:", 1))
    request = urllib.request.Request(f"http://{address}/v1/reload-config", method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
    reloads += 1
    if reloads % 2:
        # Away with the service that this very tunnel came through.
        try:
            connect("node/ws")
            raise AssertionError("the service is still there")
        except websocket.WebSocketBadStatusException as error:
            assert error.status_code == 404, error
with open(config, "w") as file:
    file.write(plain)
with urllib.request.urlopen(request, timeout=10) as response:
    assert response.status == 200
ws.close()
shown("an open tunnel while the gateway reloads",
      f"{echoed} messages echoed over {reloads} reloads that took its service away and brought it back")
