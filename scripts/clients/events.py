"""Reads server-sent events from standard input, for scripts/check-clients. Each says when it was sent; it must come
before the next one is sent.

    curl -sN URL | python3 events.py COUNT

Prints the result for the table.
"""

import os
import sys
import time

count = int(sys.argv[1])
sent, came = [], []
held = b""
while piece := os.read(0, 65536):
    now = time.time() * 1000
    held += piece
    *events, held = held.split(b"\n\n")
    for event in events:
        assert event.startswith(b"data: "), event
        sent.append(int(event[6:]))
        came.append(now)
assert len(sent) == count and not held, (len(sent), held)
for number in range(count - 1):
    assert came[number] < sent[number + 1], f"event {number} came when the next one had been sent"
delays = [there - here for here, there in zip(sent, came)]
gaps = [after - before for before, after in zip(sent, sent[1:])]
print(f"{count} events, one every {sum(gaps) / len(gaps):.0f} ms, each there before the next: "
      f"{min(delays):.1f} to {max(delays):.1f} ms after it was sent")
