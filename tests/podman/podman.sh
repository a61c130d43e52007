#!/bin/sh
# podman in a mount namespace of its own without the unified cgroup mount, as hosts in hybrid cgroup mode need it.
exec unshare -m sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman --cgroup-manager=cgroupfs "$@"' podman "$@"
