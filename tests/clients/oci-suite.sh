#!/usr/bin/env bash
# Runs the OCI's own conformance suite, everything of its dev version, against one node and against three in turn.
#
#   oci-suite.sh RAFTHOLD_BINARY SUITE_BINARY [RESULTS_DIR]
#
# The suite's binary is built from opencontainers/distribution-spec, folder conformance. Exit status 0 only without failures.
set -euo pipefail

RAFTHOLD=$(realpath "$1")
SUITE=$(realpath "$2")
RESULTS=${3:-$(mktemp -d)}
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
PIDS=()
trap 'for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done; for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done; rm -rf "$WORK"' EXIT

ports() { python3 - "$1" <<'P'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in held])
P
}

# start NAME SPARSE NODES: starts nodes and sets API to their addresses
start() {
  local name=$1 sparse=$2 count=$3 i seeds="" all; read -r -a all <<<"$(ports $((2 * count)))"
  head -c 32 /dev/urandom >"$WORK/$name.secret"; chmod 600 "$WORK/$name.secret"
  API=()
  for ((i = 0; i < count; i++)); do seeds+="\"127.0.0.1:${all[count + i]}\", "; done
  for ((i = 0; i < count; i++)); do
    API+=("127.0.0.1:${all[i]}")
    cat >"$WORK/$name$i.toml" <<C
[node]
name = "n$i"
zone = "z$i"
region = "r"
data_dir = "$WORK/$name$i"
[api]
listen = "127.0.0.1:${all[i]}"
[rpc]
listen = "127.0.0.1:${all[count + i]}"
advertise = "127.0.0.1:${all[count + i]}"
[cluster]
bootstrap_expect = $count
seeds = [$seeds]
secret_file = "$WORK/$name.secret"
[registry]
sparse = "$sparse"
C
    "$RAFTHOLD" serve --config "$WORK/$name$i.toml" >"$WORK/$name$i.log" 2>&1 &
    PIDS+=($!)
  done
  for i in "${API[@]}"; do
    for _ in $(seq 300); do curl -sf "http://$i/readyz" >/dev/null && break; sleep 0.1; done
    curl -sf "http://$i/readyz" >/dev/null || { echo "$name: $i is not ready" >&2; tail -n 20 "$WORK/$name"*.log >&2; exit 1; }
  done
}

failed=0
suite() { # NAME ADDRESS SPARSE
  local out=$RESULTS/$1; mkdir -p "$out"
  (cd "$out" && OCI_VERSION=dev OCI_TLS=disabled OCI_REGISTRY=$2 OCI_RESULTS_DIR=$out OCI_DATA_SPARSE=$3 OCI_REPO1="suite/$1/one" OCI_REPO2="suite/$1/two" \
    "$SUITE" >"$out/output.txt" 2>&1) || failed=1
  printf '%-14s ' "$1"; grep -oE '(Skip|Pass|FAIL|Error)[.]+: +[0-9]+' "$out/output.txt" | tr -s '. ' ' ' | tr '\n' ' '; echo
}

start one refuse 1
suite one "${API[0]}" false
start three refuse 3
read -r proxy <<<"$(ports 1)"
python3 "$HERE/in_turn.py" "$proxy" "${API[@]}" >"$WORK/proxy.log" 2>&1 &
PIDS+=($!)
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$proxy/livez" >/dev/null && break; sleep 0.1; done
suite three "127.0.0.1:$proxy" false
start sparse allow 1
suite sparse "${API[0]}" true
echo "results are in $RESULTS"
exit $failed
