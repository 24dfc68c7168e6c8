"""Python's http.client through the gateway, for scripts/check-clients: one connection for many requests, chunked
bodies of an iterator.

    python3 with_http_client.py HOST:PORT DIRECTORY

Prints `what<TAB>result`, a line for each thing that was shown. It must not know how the gateway works inside.
"""

import http.client
import sys

address, directory = sys.argv[1:]
text = open(directory + "/text", "rb").read()

for upstream, unframed in (("nginx", "/sub/text"), ("node", "/chunked"), ("python", "/delimited")):
    base = "/v1/proxy/" + upstream
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.connect()
    port = connection.sock.getsockname()[1]
    for count in range(100):
        path, method = (("/text", "GET"), ("/text", "HEAD"), (unframed, "GET"))[count % 3]
        connection.request(method, base + path)
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (upstream, path, response.status, body[:200])
        wanted = b"" if method == "HEAD" else text
        assert body.lower() == wanted.lower(), (upstream, path, len(body))
        assert connection.sock is not None, f"{upstream}{path}: the gateway ended the connection: {response.msg}"
        assert connection.sock.getsockname()[1] == port, "another connection"
    print(f"keep-alive, {upstream}", "100 of GET, HEAD and an unframed GET on 1 connection", sep="\t", flush=True)

for upstream, path in (("node", "/echo"), ("nginx", "/node/echo")):
    connection = http.client.HTTPConnection(address, timeout=10)
    for size in (1, 1000, 70000):
        pieces = [bytes([65 + n % 26]) * size for n in range(40)]
        connection.request("POST", f"/v1/proxy/{upstream}{path}", body=iter(pieces), encode_chunked=True,
                           headers={"Transfer-Encoding": "chunked"})
        response = connection.getresponse()
        assert response.status == 200, (upstream, response.status, response.read()[:200])
        assert response.read() == b"".join(pieces), upstream
    print(f"chunked body of an iterator, {upstream}", "3 x 40 chunks up to 70000 bytes echoed", sep="\t", flush=True)
