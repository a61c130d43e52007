#!/bin/sh
# Whether podman can run anything here: a trivial container, as the tests run theirs, on an image from scratch. Where it
# cannot, the last line printed says why.
set -eu
podman="$(dirname "$(realpath "$0")")/podman.sh"
for program in podman crun unshare; do
  if ! command -v "$program" >/dev/null; then
    echo "$program is not installed"
    exit 1
  fi
done
image="localhost/day0-probe-$$"
work="$(mktemp -d)"
trap '"$podman" rmi -f "$image" >"$work/rmi.log" 2>&1 || true; rm -rf "$work"' EXIT
mkdir "$work/root"
for file in /bin/true $(ldd /bin/true | grep -o '/[^ ]*'); do
  mkdir -p "$work/root$(dirname "$file")"
  cp -L "$file" "$work/root$file"
done
tar -C "$work/root" -cf "$work/root.tar" .
"$podman" import "$work/root.tar" "$image" 2>&1
"$podman" run --rm --cgroups=disabled --ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --network=none \
  "$image" /bin/true 2>&1
