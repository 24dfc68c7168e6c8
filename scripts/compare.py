"""Measures the programs that scripts/compare has started, and draws what came out.

Every round loads every program in turn, and each round begins with another one: what else the machine does then falls on
all of them. Ratios are medians of the ratios of single rounds, so that what a round has in common drops out.

Must not know how a program is started or configured, nor which of them it would like to win.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from html import escape
from pathlib import Path

SCENARIOS = [("small", 64, "64 connections"), ("one", 1, "1 connection")]
# Key, title, format, whether more is better.
METRICS = [
    ("rate", "requests/s", "{:,.0f}", True),
    ("p50", "p50 ms", "{:.3f}", False),
    ("p99", "p99 ms", "{:.3f}", False),
    ("cpu", "CPU µs/request", "{:.1f}", False),
]
TICK = os.sysconf("SC_CLK_TCK")


def stat(pid):
    """Parent, and processor time in seconds: the fields behind the name, which may hold anything (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICK


def processor_time(root):
    """Of a process and all that descend from it, in seconds."""
    parents, times = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)], times[int(entry)] = stat(entry)
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended meanwhile.
    if root not in times:
        sys.exit(f"FAILED: process {root} has ended under load")
    tree, grew = {root}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree, grew = tree | more, bool(more)
    return sum(times[pid] for pid in tree)


def load(port, path, connections, seconds):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", "scripts/wrk/get.lua"]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"requests"')))


def measure(pid, port, path, connections, seconds):
    before = processor_time(pid)
    report = load(port, path, connections, seconds)
    spent = processor_time(pid) - before
    if not report["requests"]:
        sys.exit(f"FAILED: nothing was answered on port {port}: {report}")
    return {
        "rate": report["requests_per_second"],
        "p50": report["latency_ms"]["p50"],
        "p99": report["latency_ms"]["p99"],
        "cpu": spent * 1e6 / report["requests"],
        "errors": sum(report["errors"].values()),
    }


def run(programs, path, rounds, seconds):
    """Scenario → program → one result for each round."""
    results = {name: {program: [] for program, _, _ in programs} for name, _, _ in SCENARIOS}
    for program, pid, port in programs:
        measure(pid, port, path, 64, 1)  # Connections to upstreams, caches: not counted.
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name, connections, _ in SCENARIOS:
            for at in range(len(programs)):
                program, pid, port = programs[(number + at) % len(programs)]
                results[name][program].append(measure(pid, port, path, connections, seconds))
    return results


def median(runs, key):
    return statistics.median(one[key] for one in runs)


def ratio(ours, theirs, key):
    pairs = [(a[key], b[key]) for a, b in zip(ours, theirs) if b[key]]
    return statistics.median(a / b for a, b in pairs) if pairs else float("nan")


def machine():
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    count = os.cpu_count()
    virtual = ", virtual" if " hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    return f"{model}, {count} processors{virtual}, {platform.system()} {platform.release().split('-')[0]}"


def tables(results, programs, about):
    heads = [f"{name} {title}" for name, _, _ in SCENARIOS for _, title, _, _ in METRICS]
    rule = "|---|" + "---:|" * len(heads)
    lines = [about]
    if len(programs) > 1:
        lines += ["", "fusegate ÷ peer; of requests/s more is better, of the rest less:", ""]
        lines += ["| | " + " | ".join(heads) + " |", rule]
    else:
        lines += ["", "There is no peer to compare with."]
    for peer in programs[1:]:
        cells = [
            f"{ratio(results[name]['fusegate'], results[name][peer], key):.2f}"
            for name, _, _ in SCENARIOS
            for key, _, _, _ in METRICS
        ]
        lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    lines += ["", "Medians, and from the least to the most:", "", "| | " + " | ".join(heads) + " |", rule]
    for program in programs:
        cells = []
        for name, _, _ in SCENARIOS:
            for key, _, form, _ in METRICS:
                values = [one[key] for one in results[name][program]]
                spread = f"{form.format(min(values))}–{form.format(max(values))}"
                cells.append(f"{form.format(statistics.median(values))} ({spread})")
        lines.append(f"| {program} | " + " | ".join(cells) + " |")
    errors = {p: sum(one["errors"] for name in results for one in results[name][p]) for p in programs}
    lines += ["", "Errors: " + ", ".join(f"{program} {count}" for program, count in errors.items()) + "."]
    return "\n".join(lines)


STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 } .panel { font-weight: 600 } .note { fill: #59636e; font-size: 11px }
  .axis { stroke: #d1d9e0 } .fusegate { fill: #d9480f } .nginx { fill: #2f7d4f } .haproxy { fill: #3b6fb6 }
  .soft { opacity: .55 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .note { fill: #9198a1 } .axis { stroke: #3d444d }
    .fusegate { fill: #ff8f4c } .nginx { fill: #57b27c } .haproxy { fill: #79a8e8 }
  }
"""


def bars(out, x, y, width, title, rows, form):
    """A panel: a title, and a bar with its value for each row of (label, class, value)."""
    out.append(f'<text class="panel" x="{x}" y="{y}">{escape(title)}</text>')
    most = max(value for _, _, value in rows) or 1
    label, number = 84, 64
    room = width - label - number
    for at, (name, style, value) in enumerate(rows):
        top = y + 12 + at * 22
        length = max(1, round(room * value / most))
        out.append(f'<text x="{x}" y="{top + 12}">{escape(name)}</text>')
        out.append(f'<rect class="{style}" x="{x + label}" y="{top}" width="{length}" height="16" rx="2"/>')
        out.append(f'<text x="{x + label + length + 5}" y="{top + 12}">{form.format(value)}</text>')
    bottom = y + 12 + len(rows) * 22
    out.append(f'<path class="axis" d="M{x + label - .5} {y + 8}V{bottom - 2}"/>')


def svg(results, programs, about):
    width, column, left = 960, 312, 16
    high = 44 + 2 * len(programs) * 22
    height = 62 + len(SCENARIOS) * (high + 34) + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-labelledby="t">',
        '<title id="t">fusegate beside its peers: throughput, latency, processor time of a request</title>',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{left}" y="24">{escape(", ".join(programs))}: one worker each, side by side</text>',
        f'<text class="note" x="{left}" y="42">{escape(about)}</text>',
    ]
    for row, (name, _, what) in enumerate(SCENARIOS):
        y = 72 + row * (high + 34)
        out.append(f'<text class="title" x="{left}" y="{y}">{what}</text>')
        found = results[name]
        plain = {key: [(p, p, median(found[p], key)) for p in programs] for key, _, _, _ in METRICS}
        latency = [(f"{p} {key}", p + soft, median(found[p], key)) for p in programs
                   for key, soft in (("p50", ""), ("p99", " soft"))]
        bars(out, left, y + 24, column - 16, "requests per second (more is better)", plain["rate"], "{:,.0f}")
        bars(out, left + column, y + 24, column - 16, "latency, ms (less is better)", latency, "{:.3f}")
        bars(out, left + 2 * column, y + 24, column - 16, "CPU, µs per request (less is better)", plain["cpu"], "{:.1f}")
    out.append("</svg>")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--versions", type=Path, required=True)
    parser.add_argument("programs", nargs="+", help="NAME=PID:PORT, fusegate first")
    given = parser.parse_args()
    programs = []
    for text in given.programs:
        name, _, place = text.partition("=")
        pid, _, port = place.partition(":")
        programs.append((name, int(pid), int(port)))
    names = [name for name, _, _ in programs]
    results = run(programs, given.path, given.rounds, given.seconds)
    known = given.versions.read_text().split("\n")
    versions = ", ".join(line for line in known if line.split(" ")[0] in names)
    busy = f"load average {os.getloadavg()[0]:.1f}"
    about = f"{machine()}, {busy}; {versions}; {given.rounds} rounds of {given.seconds} s"
    print(tables(results, names, about))
    (given.out / "compare.json").write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    (given.out / "compare.svg").write_text(svg(results, names, about))
    print(f"\ndrawn: {given.out / 'compare.svg'}")


main()
