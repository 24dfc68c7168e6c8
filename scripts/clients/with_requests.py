"""The library `requests` through the gateway, for scripts/check-clients: sessions, streams, gzip, redirects, cookies.

    python3 with_requests.py http://HOST:PORT DIRECTORY

Prints `what<TAB>result`, a line for each thing that was shown. It must not know how the gateway works inside.
"""

import hashlib
import sys

import requests

gateway, directory = sys.argv[1:]
text = open(directory + "/text", "rb").read()
large = open(directory + "/large", "rb").read()
base = gateway + "/v1/proxy/"


def shown(what, result):
    print(what, result, sep="\t", flush=True)


session = requests.Session()
for upstream in ("nginx", "node", "python"):
    for _ in range(30):
        response = session.get(f"{base}{upstream}/text", timeout=10)
        assert response.status_code == 200 and response.content == text, (upstream, response.status_code)
pools = [pool for _, pool in session.get_adapter(base).poolmanager.pools._container.items()]
assert sum(pool.num_connections for pool in pools) == 1, [pool.num_connections for pool in pools]
shown("Session", "30 GETs each of nginx, node, python on 1 connection")

for url in ("nginx/large", "node/large", "python/large"):
    digest, size = hashlib.sha256(), 0
    with session.get(base + url, stream=True, headers={"Accept-Encoding": "identity"}, timeout=10) as response:
        for piece in response.iter_content(10000):
            digest.update(piece)
            size += len(piece)
    assert size == len(large) and digest.digest() == hashlib.sha256(large).digest(), url
shown("stream=True", f"{len(large) >> 20} MiB each from nginx, node, python, same checksum")


def pieces():
    for at in range(0, len(large), 99991):
        yield large[at:at + 99991]


for url in ("node/echo", "nginx/node/echo"):
    response = session.put(base + url, data=pieces(), timeout=30)
    assert response.status_code == 200 and response.content == large, (url, response.status_code)
shown("upload of a generator (chunked)", f"{len(large) >> 20} MiB to node, and through nginx, echoed, same bytes")

response = session.get(base + "nginx/text", timeout=10)
assert response.headers["Content-Encoding"] == "gzip", response.headers
assert response.content == text
shown("gzip", f"Content-Encoding: gzip from nginx, unpacked to the same {len(text)} bytes")

response = session.get(base + "node/redirect-away", allow_redirects=False, timeout=10)
assert response.status_code == 307 and response.headers["Location"] == "http://elsewhere.example/a?b=c"
response = session.get(base + "node/redirect", timeout=10)
assert response.url == base + "node/text" and response.content == text and len(response.history) == 1
shown("redirects", "Location unchanged, absolute and relative; the relative one followed")

jar = requests.Session()
jar.get(base + "node/cookies", timeout=10)
assert jar.cookies["one"] == "1" and jar.cookies["two"] == '"2 2"', jar.cookies
sent = jar.get(base + "node/fields", timeout=10).json()["cookie"]
assert sorted(sent.split("; ")) == ["one=1", 'two="2 2"'], sent
shown("cookies", "two Set-Cookie lines kept apart, both sent back")
