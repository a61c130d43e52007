#!/usr/bin/env bash
# server.sh MODEL DATA OUT [LIMIT]: what the server costs, and what overload does.
#
# 1. `day0 bench score` of the first LIMIT items (default 200) of hellaswag and arc_easy in process, then by 64 clients
#    with one prompt a request over `day0 serve` on the loopback interface, three times in turn.
# 2. Overload: 256 clients that score at once against a server that takes 64; what is refused, and how long the rest
#    waited (the histogram of /metrics).
# 3. `day0 bench serve`: generation by 8 clients at once.
set -euo pipefail
model="$1" data="$2" out="$3" limit="${4:-200}"
day0="${DAY0:-target/release/day0}"
mkdir -p "$out"
score=("$day0" --json bench score --model "$model" --suite hellaswag,arc_easy --data "$data" --limit "$limit")
"$day0" doctor > "$out/doctor.txt" 2>&1

serve() {
    "$day0" serve "$model" --port 0 --quiet "$@" > "$out/url" &
    server=$!
    while [ ! -s "$out/url" ]; do sleep 0.1; done
    url="$(cat "$out/url")"
}
stop() {
    kill "$server"
    wait "$server" || true
    rm -f "$out/url"
}
trap 'kill "${server:-0}" 2> /dev/null || true' EXIT

for i in 1 2 3; do
    "${score[@]}" > "$out/in-process-$i.json"
    serve
    "${score[@]}" --endpoint "$url" --concurrency 64 > "$out/clients-64-$i.json"
    stop
done
serve --max-requests 64
"${score[@]}" --endpoint "$url" --concurrency 256 > "$out/overload-256.json" || true
curl -s "$url/metrics" > "$out/overload-metrics.txt"
stop
serve
"$day0" --json bench serve --endpoint "$url" --requests 64 --concurrency 8 > "$out/generate-8.json"
stop
