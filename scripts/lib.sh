# Shared by the check-* scripts: a scratch directory, processes that end with the script, waiting by condition.
# Must not know: what is checked. To be sourced after `set -euo pipefail`, from the project's root.

FUSEGATE=${FUSEGATE:-target/release/fusegate}
SCRATCH=$(mktemp -d)
STARTED=()

end_all() {
   local pid
   for pid in "${STARTED[@]:-}"; do
      [ -n "$pid" ] && kill "$pid" 2>/dev/null || true
   done
   for pid in "${STARTED[@]:-}"; do
      [ -n "$pid" ] && wait "$pid" 2>/dev/null || true
   done
   rm -rf "$SCRATCH"
}
trap end_all EXIT

die() {
   echo "FAILED: $*" >&2
   [ -f "$SCRATCH/gateway.log" ] && tail -n 20 "$SCRATCH/gateway.log" >&2
   exit 1
}

# start NAME COMMAND…: in the background, output to $SCRATCH/NAME.log; its pid is in $PID.
start() {
   local name=$1
   shift
   "$@" >"$SCRATCH/$name.log" 2>&1 </dev/null &
   PID=$!
   STARTED+=("$PID")
}

# free_port [N]: the first of N ports in a row that are free now, below those that the system gives to clients.
# Another program may take one before we do; then the start says so.
free_port() {
   python3 - "${1:-1}" <<'PY'
import random, socket, sys
while True:
    first, sockets = random.randrange(10000, 30000), []
    try:
        for port in range(first, first + int(sys.argv[1])):
            sockets.append(socket.socket())
            sockets[-1].bind(("127.0.0.1", port))
        print(first)
        break
    except OSError:
        pass
    finally:
        for one in sockets:
            one.close()
PY
}

# until_ok WHAT COMMAND…: tries every 50 ms, at most 20 s.
until_ok() {
   local what=$1 tries=0
   shift
   until "$@" >/dev/null 2>&1; do
      tries=$((tries + 1))
      ((tries < 400)) || die "$what did not come about"
      sleep 0.05
   done
}

answers() { curl -fsS -o /dev/null -m 2 "$1"; }

resident_kib() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }

status_of() { curl -s -o /dev/null -m 10 -w '%{http_code}' "$@"; }
