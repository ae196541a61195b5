#!/usr/bin/env bash
# Real clients against three real nodes: push to node 1, pull from 2 and 3, copy, delete, sign, verify, discover;
# first plain HTTP on loopback, then TLS with a login. Debian 12 (amd64), root.
#
#   run.sh RAFTHOLD_BINARY [BINDIR_OF_CLIENTS]
#
# Installs the clients (install-clients.sh) and openssl and apache2-utils when they are missing. Exit status 0 only if
# every client did everything; nothing is skipped. Everything it starts it ends.
set -euo pipefail

RAFTHOLD=$(realpath "$1")
BIN=${2:-/opt/oci-clients/bin}
HERE=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
PIDS=()

finish() {
  local status=$?
  for pid in "${PIDS[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${PIDS[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ $status = 0 ]; then rm -rf "$WORK"; else echo "FAILED; logs are in $WORK" >&2; tail -n 30 "$WORK"/*.log >&2 || true; fi
  exit $status
}
trap finish EXIT

"$HERE/install-clients.sh" "$BIN"
command -v htpasswd >/dev/null || apt-get install -y -q --no-install-recommends apache2-utils >>"$WORK/apt.log" 2>&1
export PATH=$BIN:$PATH
export HOME=$WORK/home DOCKER_CONFIG=$WORK/home/.docker REGISTRY_AUTH_FILE=$WORK/home/auth.json
export XDG_CONFIG_HOME=$WORK/home/.config COSIGN_PASSWORD=
mkdir -p "$HOME" "$DOCKER_CONFIG"
echo "{}" >"$REGISTRY_AUTH_FILE"

# refused COMMAND...: fails if it succeeds (a plain `!` does not stop a script)
refused() { if "$@" >/dev/null 2>&1; then echo "not refused: $*" >&2; return 1; fi; }

step() { printf '%-9s %s\n' "$1" "$2"; }

# eventually SECONDS COMMAND...: until it succeeds
eventually() {
  local end=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "not within the time: $*" >&2; return 1; }
    sleep 0.2
  done
}

# ---- what is pushed: an OCI layout with one small image, made by hand --------------------------------------------
make_layout() { # DIR
  python3 - "$1" <<'P'
import gzip, hashlib, io, json, os, sys, tarfile
root = sys.argv[1]
os.makedirs(f"{root}/blobs/sha256", exist_ok=True)
def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    open(f"{root}/blobs/sha256/{digest}", "wb").write(data)
    return "sha256:" + digest, len(data)
layers, diff_ids = [], []
for n in range(3):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        body = os.urandom(200_000) + bytes(100_000)
        info = tarfile.TarInfo(f"file{n}"); info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    diff_ids.append("sha256:" + hashlib.sha256(raw.getvalue()).hexdigest())
    digest, size = blob(gzip.compress(raw.getvalue(), mtime=0))
    layers.append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size})
config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/file0"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
          "history": [{"created_by": f"layer {n}"} for n in range(3)]}
digest, size = blob(json.dumps(config).encode())
manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size}, "layers": layers}
digest, size = blob(json.dumps(manifest).encode())
json.dump({"imageLayoutVersion": "1.0.0"}, open(f"{root}/oci-layout", "w"))
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": manifest["mediaType"], "digest": digest, "size": size,
           "annotations": {"org.opencontainers.image.ref.name": "v1"}}]}, open(f"{root}/index.json", "w"))
P
}
make_layout "$WORK/layout"

# ---- daemons -----------------------------------------------------------------------------------------------------
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start_dockerd() { # REGISTRY-ARGS...
  mkdir -p "$WORK/docker"
  dockerd --host "unix://$WORK/docker.sock" --data-root "$WORK/docker/root" --exec-root "$WORK/docker/exec" \
    --pidfile "$WORK/docker/pid" --bridge none --iptables=false --ip6tables=false --storage-driver vfs "$@" >"$WORK/dockerd.log" 2>&1 &
  PIDS+=($!)
  export DOCKER_HOST=unix://$WORK/docker.sock
  eventually 60 docker version
}

start_containerd() {
  mkdir -p "$WORK/ctrd"
  cat >"$WORK/ctrd/config.toml" <<C
version = 2
root = "$WORK/ctrd/root"
state = "$WORK/ctrd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$WORK/ctrd/sock"
C
  containerd --config "$WORK/ctrd/config.toml" >"$WORK/containerd.log" 2>&1 &
  PIDS+=($!)
  eventually 60 ctr --address "$WORK/ctrd/sock" version
}

# ---- three nodes -------------------------------------------------------------------------------------------------
start_plain() {
  local base; base=$(free_port)
  # api ports base.. and rpc ports base+100..: a free run of them
  while ! python3 - "$base" <<'P'
import socket, sys
base = int(sys.argv[1]); held = []
for port in [*range(base, base + 3), *range(base + 100, base + 103)]:
    s = socket.socket(); s.bind(("127.0.0.1", port)); held.append(s)
P
  do base=$(free_port); done
  "$RAFTHOLD" dev --dir "$WORK/dev" --base-port "$base" >"$WORK/dev.log" 2>&1 &
  PIDS+=($!)
  eventually 60 test -e "$WORK/dev/cluster.json"
  N1=127.0.0.1:$base N2=127.0.0.1:$((base + 1)) N3=127.0.0.1:$((base + 2))
}

start_tls() {
  local names=() ports=() i
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=rafthold-test -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" \
    -addext "basicConstraints=critical,CA:TRUE" -keyout "$WORK/tls.key" -out "$WORK/tls.crt" 2>>"$WORK/openssl.log"
  chmod 600 "$WORK/tls.key"
  htpasswd -cbB "$WORK/htpasswd" alice 'correct horse' 2>>"$WORK/openssl.log"
  head -c 32 /dev/urandom >"$WORK/secret"; chmod 600 "$WORK/secret"
  for i in 1 2 3 4 5 6; do ports+=("$(free_port)"); done
  for i in 1 2 3; do
    mkdir -p "$WORK/t$i"
    cat >"$WORK/t$i/node.toml" <<C
[node]
name = "t$i"
zone = "z$i"
region = "r1"
data_dir = "$WORK/t$i/data"
[api]
listen = "127.0.0.1:${ports[i - 1]}"
tls_cert = "$WORK/tls.crt"
tls_key = "$WORK/tls.key"
[rpc]
listen = "127.0.0.1:${ports[i + 2]}"
advertise = "127.0.0.1:${ports[i + 2]}"
[cluster]
bootstrap_expect = 3
seeds = ["127.0.0.1:${ports[3]}", "127.0.0.1:${ports[4]}", "127.0.0.1:${ports[5]}"]
secret_file = "$WORK/secret"
[auth]
htpasswd = "$WORK/htpasswd"
C
    "$RAFTHOLD" serve --config "$WORK/t$i/node.toml" >"$WORK/t$i.log" 2>&1 &
    PIDS+=($!)
  done
  N1=127.0.0.1:${ports[0]} N2=127.0.0.1:${ports[1]} N3=127.0.0.1:${ports[2]}
  for i in "$N1" "$N2" "$N3"; do eventually 60 curl -sf --cacert "$WORK/tls.crt" "https://$i/readyz"; done
}

# ---- what each client does; flags differ between plain HTTP and TLS ----------------------------------------------
skopeo_all() { # FLAGS for source and destination
  skopeo copy "$@" "oci:$WORK/layout:v1" "docker://$N1/clients/skopeo:v1"
  skopeo inspect "${@/--dest-/--}" "docker://$N2/clients/skopeo:v1" >"$WORK/skopeo.json"
  skopeo copy "${@/--dest-/--src-}" "$@" "docker://$N2/clients/skopeo:v1" "docker://$N3/clients/skopeo-copy:v1"
  skopeo copy "${@/--dest-/--src-}" "docker://$N3/clients/skopeo-copy:v1" "dir:$WORK/skopeo-$RANDOM"
  skopeo list-tags "${@/--dest-/--}" "docker://$N1/clients/skopeo" | grep '"v1"' >/dev/null
  skopeo delete "${@/--dest-/--}" "docker://$N3/clients/skopeo-copy:v1"
  refused skopeo inspect "${@/--dest-/--}" "docker://$N1/clients/skopeo-copy:v1"
  step skopeo "push, inspect, copy across nodes, list, delete"
}

containers_all() { # CLIENT FLAGS
  local client=$1; shift
  "$client" pull -q "oci:$WORK/layout:v1" >"$WORK/$client.id"
  "$client" tag "$(cat "$WORK/$client.id")" "$N1/clients/$client:v1"
  "$client" push -q "$@" "$N1/clients/$client:v1"
  "$client" pull -q "$@" "$N2/clients/$client:v1" >/dev/null
  "$client" rmi -f "$N2/clients/$client:v1" "$N1/clients/$client:v1" >/dev/null
  "$client" pull -q "$@" "$N3/clients/$client:v1" >/dev/null
  step "$client" "push to node 1, pull from 2 and 3"
}

docker_all() {
  docker load -q -i "$WORK/docker.tar" >/dev/null
  docker tag rafthold-test:v1 "$N1/clients/docker:v1"
  docker push -q "$N1/clients/docker:v1" >/dev/null
  docker rmi "$N1/clients/docker:v1" rafthold-test:v1 >/dev/null
  docker pull -q "$N2/clients/docker:v1" >/dev/null
  docker rmi "$N2/clients/docker:v1" >/dev/null
  docker pull -q "$N3/clients/docker:v1" >/dev/null
  step docker "push to node 1, pull from 2 and 3"
}

crane_all() { # FLAGS
  crane "$@" push "$WORK/docker.tar" "$N1/clients/crane:v1" >/dev/null
  crane "$@" pull "$N2/clients/crane:v1" "$WORK/crane.tar"
  crane "$@" copy "$N2/clients/crane:v1" "$N3/clients/crane-copy:v2" 2>/dev/null
  crane "$@" tag "$N3/clients/crane-copy:v2" v3
  [ "$(crane "$@" ls "$N1/clients/crane-copy" | sort | tr '\n' ' ')" = "v2 v3 " ]
  crane "$@" validate --remote "$N3/clients/crane-copy:v3" >/dev/null
  crane "$@" delete "$N1/clients/crane-copy@$(crane "$@" digest "$N2/clients/crane-copy:v2")"
  refused crane "$@" digest "$N2/clients/crane-copy:v3"
  crane "$@" catalog "$N2" | grep '^clients/crane$' >/dev/null
  step crane "push, pull, copy, tag, list, validate, delete, catalog"
}

oras_all() { # CLIENT FLAGS
  local client=$1; shift
  (cd "$WORK" && echo "hello from $client" >artifact.txt && "$client" push "$@" "$N1/clients/$client:v1" artifact.txt:text/plain >/dev/null)
  mkdir -p "$WORK/$client-out"
  "$client" pull "$@" "$N2/clients/$client:v1" -o "$WORK/$client-out" >/dev/null
  cmp "$WORK/artifact.txt" "$WORK/$client-out/artifact.txt"
  (cd "$WORK" && echo '{}' >sbom.json && "$client" attach "$@" --artifact-type application/vnd.example.sbom "$N2/clients/$client:v1" sbom.json:application/json >/dev/null)
  "$client" discover "$@" "$N3/clients/$client:v1" | grep sbom >/dev/null
  "$client" manifest delete "$@" -f "$N3/clients/$client:v1" >/dev/null
  step "$client" "push, pull, attach, discover, delete"
}

cosign_all() { # CLIENT FLAGS
  local client=$1 ref; shift
  ref=$N2/clients/crane@$(crane "${CRANE[@]}" digest "$N1/clients/crane:v1")
  (cd "$WORK" && rm -f cosign.key cosign.pub && "$client" generate-key-pair >/dev/null 2>&1)
  local sign=(--key "$WORK/cosign.key" --yes "$@") verify=(--key "$WORK/cosign.pub" "$@")
  if "$client" sign --help 2>&1 | grep -e --use-signing-config >/dev/null; then sign+=(--use-signing-config=false); fi
  "$client" sign "${sign[@]}" --tlog-upload=false "$ref" >"$WORK/$client.log" 2>&1
  "$client" verify "${verify[@]}" --insecure-ignore-tlog=true "${ref/$N2/$N3}" >>"$WORK/$client.log" 2>&1
  echo '{"predicate": "test"}' >"$WORK/predicate.json"
  "$client" attest "${sign[@]}" --tlog-upload=false --predicate "$WORK/predicate.json" "${ref/$N2/$N3}" >>"$WORK/$client.log" 2>&1
  "$client" verify-attestation "${verify[@]}" --insecure-ignore-tlog=true "${ref/$N2/$N1}" >>"$WORK/$client.log" 2>&1
  step "$client" "sign at node 2, verify at 3; attest at 3, verify at 1"
}

notation_all() { # FLAGS
  local digest; digest=$(crane "${CRANE[@]}" digest "$N1/clients/crane:v1")
  if [ ! -e "$XDG_CONFIG_HOME/notation/trustpolicy.json" ]; then
    notation cert generate-test --default rafthold.test >/dev/null
    cat >"$XDG_CONFIG_HOME/notation/trustpolicy.json" <<J
{"version": "1.0", "trustPolicies": [{"name": "test", "registryScopes": ["*"], "signatureVerification": {"level": "strict"},
 "trustStores": ["ca:rafthold.test"], "trustedIdentities": ["*"]}]}
J
  fi
  notation sign "$@" "$N1/clients/crane@$digest" >"$WORK/notation.log" 2>&1
  notation verify "$@" "$N2/clients/crane@$digest" >>"$WORK/notation.log" 2>&1
  notation list "$@" "$N3/clients/crane@$digest" | grep sha256: >/dev/null
  step notation "sign at node 1, verify at 2, list at 3"
}

helm_all() { # FLAGS
  rm -rf "$WORK/chart"; mkdir -p "$WORK/chart"
  helm create probe "$WORK/chart" >/dev/null
  helm package "$WORK/chart/probe" -d "$WORK/chart" >/dev/null
  helm push "$@" "$(ls "$WORK"/chart/probe-*.tgz)" "oci://$N1/charts" >/dev/null
  mkdir -p "$WORK/chart/out"
  helm pull "$@" "oci://$N3/charts/probe" --version 0.1.0 -d "$WORK/chart/out" >/dev/null
  ls "$WORK"/chart/out/probe-*.tgz >/dev/null
  step helm "push to node 1, pull from 3"
}

ctr_all() { # FLAGS
  local ctr=(ctr --address "$WORK/ctrd/sock")
  "${ctr[@]}" content ls >/dev/null
  "${ctr[@]}" images pull "$@" --local "$N1/clients/skopeo:v1" >"$WORK/ctr.log" 2>&1 ||
    "${ctr[@]}" images pull "$@" "$N1/clients/skopeo:v1" >"$WORK/ctr.log" 2>&1
  "${ctr[@]}" images tag --force "$N1/clients/skopeo:v1" "$N2/clients/ctr:v1" >/dev/null
  "${ctr[@]}" images push "$@" "$N2/clients/ctr:v1" >>"$WORK/ctr.log" 2>&1
  "${ctr[@]}" images pull "$@" "$N3/clients/ctr:v1" >>"$WORK/ctr.log" 2>&1
  step ctr "pull from node 1, push to 2, pull from 3"
}

# ---- plain HTTP --------------------------------------------------------------------------------------------------
start_plain
start_dockerd
start_containerd
skopeo copy -q "oci:$WORK/layout:v1" "docker-archive:$WORK/docker.tar:rafthold-test:v1"
CRANE=(--insecure)
skopeo_all --dest-tls-verify=false
containers_all podman --tls-verify=false
containers_all buildah --tls-verify=false
docker_all
crane_all "${CRANE[@]}"
oras_all oras --plain-http
oras_all oras12 --plain-http
cosign_all cosign --allow-http-registry
cosign_all cosign2 --allow-http-registry
notation_all --insecure-registry
helm_all --plain-http
ctr_all --plain-http

# ---- TLS with a login --------------------------------------------------------------------------------------------
start_tls
export SSL_CERT_FILE=$WORK/tls.crt
for node in "$N1" "$N2" "$N3"; do
  mkdir -p "/etc/docker/certs.d/$node"; cp "$WORK/tls.crt" "/etc/docker/certs.d/$node/ca.crt"
  printf 'correct horse' | skopeo login -u alice --password-stdin "$node" >/dev/null
  refused skopeo login -u alice -p wrong "$node"
  printf 'correct horse' | skopeo login -u alice --password-stdin "$node" >/dev/null
  printf 'correct horse' | docker login -u alice --password-stdin "$node" >/dev/null 2>&1
  printf 'correct horse' | helm registry login "$node" -u alice --password-stdin >/dev/null
done
step login "skopeo, docker, helm; a wrong password is refused"
refused curl -fs --cacert "$WORK/tls.crt" "https://$N1/v2/"
CRANE=()
skopeo_all --dest-tls-verify=true
containers_all podman
containers_all buildah
docker_all
crane_all
oras_all oras --plain-http=false
cosign_all cosign
notation_all -u alice -p 'correct horse'
helm_all
for node in "$N1" "$N2" "$N3"; do
  # ctr takes loopback for plain HTTP unless told
  mkdir -p "$WORK/hosts/$node"
  printf 'server = "https://%s"\n[host."https://%s"]\nca = "%s"\n' "$node" "$node" "$WORK/tls.crt" >"$WORK/hosts/$node/hosts.toml"
done
ctr_all --user 'alice:correct horse' --hosts-dir "$WORK/hosts"
for node in "$N1" "$N2" "$N3"; do rm -rf "/etc/docker/certs.d/$node"; done
echo "all clients did everything"
