#!/usr/bin/env bash
# Builds both images and runs them as they are meant to run: not as root, on a read-only root, without capabilities.
# Then a verification, a login, a payment and a callback against the sandbox, and a stop while calls are in flight.
#
#   ENGINE       podman (default) or docker
#   BUILD_FLAGS  further options of the build, such as --isolation=chroot or -v for a CA of your own
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-podman}
name=bff-check-$$
variables=/opt/bff/var/sandbox/variables

finish() {
    [ $? = 0 ] || "$engine" logs "$name-bff" 2>&1 | tail -20 || true
    "$engine" rm -f "$name-bff" "$name-sandbox" > /dev/null 2>&1 || true
    "$engine" volume rm "$name" > /dev/null 2>&1 || true
    "$engine" network rm "$name" > /dev/null 2>&1 || true
    "$engine" rmi "localhost/$name-service" "localhost/$name-sandbox" > /dev/null 2>&1 || true
}
trap finish EXIT

for target in service sandbox; do
    # shellcheck disable=SC2086 # several options in one variable
    built=$("$engine" build --quiet ${BUILD_FLAGS:-} --target "$target" --tag "localhost/$name-$target" . 2>&1) || {
        echo "$built" >&2
        exit 1
    }
done
size=$("$engine" image inspect --format '{{.Size}}' "localhost/$name-service")
echo "image: $((size / 1000000)) MB"

"$engine" network create --subnet 172.31.251.0/24 "$name" > /dev/null
"$engine" volume create "$name" > /dev/null
confined=(--network "$name" --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --pids-limit 128
    --volume "$name:/opt/bff/var")
"$engine" run --detach --name "$name-sandbox" "${confined[@]}" --ip 172.31.251.3 --network-alias sandbox \
    "localhost/$name-sandbox" --name sandbox --callbacks-url "http://bff:8000" --variables var/sandbox/variables > /dev/null
wait_for() { # container address
    for _ in $(seq 120); do
        "$engine" exec "$1" python -Ic "import urllib.request as r; r.urlopen('$2', timeout=2)" 2> /dev/null && return
        sleep 0.5
    done
    echo "$2 does not answer" >&2
    return 1
}
wait_for "$name-sandbox" http://127.0.0.1:9480/control/config

# The settings of the compose file's sandbox, but for what is compose's own.
# shellcheck source=sandbox.env
settings=$(set -a && . deploy/sandbox.env && env | grep '^BFF_')
settings=$(echo "$settings" | grep -v BFF_NETWORK__CALLBACK_ALLOWLIST=
    echo 'BFF_NETWORK__CALLBACK_ALLOWLIST=["172.31.251.3/32"]'
    echo "BFF_DATABASE__URL_FILE=$variables/BFF_DATABASE__URL")
"$engine" run --rm "${confined[@]}" --env-file <(echo "$settings") "localhost/$name-service" migrate
"$engine" run --detach --name "$name-bff" "${confined[@]}" --memory 256m --env-file <(echo "$settings") \
    --network-alias bff "localhost/$name-service" > /dev/null
wait_for "$name-bff" http://127.0.0.1:8000/readyz

test "$("$engine" exec "$name-bff" id -u)" = 10001
if "$engine" exec "$name-bff" touch /opt/bff/written 2> /dev/null; then
    echo "the root filesystem can be written" >&2
    exit 1
fi
"$engine" exec -i "$name-sandbox" python - http://bff:8000 < deploy/smoke.py

"$engine" exec -i "$name-sandbox" python -u - http://bff:8000 --until-stopped < deploy/smoke.py | while read -r line; do
    echo "$line"
    [ "$line" != calling ] || "$engine" stop --time 40 "$name-bff" > /dev/null &
done
test "$("$engine" wait "$name-bff")" = 0
echo "container: ok"
