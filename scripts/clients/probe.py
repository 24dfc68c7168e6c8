"""The normal client during an attack, for scripts/check-clients: a GET on a connection of its own every 200 ms while
the attacker runs, and a look at the gateway's memory and connections.

    python3 probe.py PORT PATH GATEWAY_PID ATTACKER_PID SECONDS

The attack is over when it has lasted SECONDS and the gateway has ended all its connections, or the attacker has ended.
Prints the result for the table, and before it each request that took 100 ms or more. Fails when a request failed, when
the median is not under 100 ms, when more than one is over it, when connections of the attacker last longer than ten
seconds beyond, or when memory grew beyond what two buffers of 64 KiB for each open connection explain.
It must not know which attack it is.
"""

import http.client
import statistics
import sys
import time

port, path, gateway, attacker, seconds = int(sys.argv[1]), *sys.argv[2:5], float(sys.argv[5])


def resident_kib():
    for line in open(f"/proc/{gateway}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise SystemExit("the gateway is gone")


def connections():
    """Clients that the gateway has accepted and not closed."""
    count = 0
    for line in list(open("/proc/net/tcp"))[1:]:
        _, local, _, state, *_ = line.split()
        if int(local.split(":")[1], 16) == port and state in ("01", "08"):
            count += 1
    return count


def attacks():
    try:
        return open(f"/proc/{attacker}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def get():
    begun = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body)
    took = (time.monotonic() - begun) * 1000
    connection.close()
    return took


for _ in range(20):
    get()
before = most = resident_kib()
peak = 0
begun = time.monotonic()
took = []
held = 0
while True:
    due = begun + 0.2 * (len(took) + 1)
    took.append(get())
    most = max(most, resident_kib())
    held = connections()
    peak = max(peak, held)
    spent = time.monotonic() - begun
    # The last normal connection may still be among them.
    if not attacks() or spent > seconds and held <= 1:
        break
    assert spent < seconds + 10, f"{held} connections are still open"
    time.sleep(max(0.0, due - time.monotonic()))
over = [(number, ms) for number, ms in enumerate(took) if ms >= 100]
for number, ms in over:
    print(f"request {number}, {number * 0.2:.1f} s after the begin, took {ms:.0f} ms")
growth, bound = most - before, peak * 128 + 4096
print(f"{len(took)} normal requests: min {min(took):.1f}, median {statistics.median(took):.1f}, "
      f"max {max(took):.1f} ms; at most {peak} connections at once, none left after {spent:.0f} s; "
      f"memory {before} KiB, at most +{growth} KiB")
assert statistics.median(took) < 100, "the median is not under 100 ms"
assert len(over) <= 1, f"{len(over)} requests took 100 ms or more"
assert peak >= 100, f"only {peak} connections: no attack"
assert held <= 1, f"the attacker ended by itself and had {held} connections"
assert growth <= bound, f"memory grew by {growth} KiB, more than {bound} KiB"
