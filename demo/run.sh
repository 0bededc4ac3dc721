#!/usr/bin/env bash
# The demo: a model server on loopback, a small agent (demo/client.py) that calls it over TLS, and `agentsight record` around it.
#
# Shows first what the agent itself prints, then what agentsight saw from the kernel: the process tree, both model calls with prompt,
# answer, tool call and tokens, and how many of the bytes were opened. Needs `make build` and root (or sudo). Everything happens in
# a temporary directory that is removed at the end. Exit 0 when both calls were recorded whole.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
agentsight=$root/.venv/bin/agentsight

say() { printf '\n== %s\n\n' "$*"; }
fail() { printf 'Error: %s\n' "$*" >&2; exit 1; }

[ -x "$agentsight" ] || fail "agentsight is not built; run: make build"
"$python" -c 'import httpx' 2>/dev/null || fail "the demo's client needs httpx, which is missing in .venv; run: make setup"

work=$(mktemp -d "${TMPDIR:-/tmp}/agentsight-demo.XXXXXX")
chmod 755 "$work" # under sudo the client runs as the invoking user, who has to read ca.pem
server=
cleanup() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say "starting the model server on loopback"
(cd "$root" && exec "$python" -m tests.modelserver --dir "$work/server" >"$work/server.out" 2>"$work/server.err") &
server=$!
for _ in $(seq 200); do
    [ -s "$work/server/port" ] && break
    kill -0 "$server" 2>/dev/null || fail "the model server did not start: $(tail -n 1 "$work/server.err")"
    sleep 0.05
done
[ -s "$work/server/port" ] || fail "the model server did not start within 10 seconds"
port=$(cat "$work/server/port")
echo "https://localhost:$port"

say "agentsight record -- python demo/client.py"
cd "$work"
status=0
ANTHROPIC_BASE_URL=https://localhost:$port SSL_CERT_FILE=$work/server/ca.pem \
    "$agentsight" record --log-file "$work/record.jsonl" -- "$python" "$root/demo/client.py" || status=$?
[ "$status" = 0 ] || fail "the recorded program, or agentsight itself, ended with status $status"

say "checking: is what was recorded from outside what the model server sent?"
"$python" "$root/demo/check.py" "$work/record.jsonl" "$work/server/journal"
