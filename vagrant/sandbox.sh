#!/bin/bash
# Runs a command with a libvirtd of its own, where none runs or none should be touched:
#
#   vagrant/sandbox.sh COMMAND…
#
# Network, processes and mounts are namespaces of their own. Nothing of this machine's network or libvirt
# is seen or changed, and everything inside ends with the command: machines, networks, daemons.
# No way leads out of it.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "sandbox.sh: namespaces need root" >&2; exit 1; }
here=$(dirname "$(realpath "$0")")
if [ -z "${TOMBOLO_SANDBOX:-}" ]; then
    mkdir -p "$here/../target/vagrant"
    TOMBOLO_SANDBOX=$(mktemp -d "$(realpath "$here/../target/vagrant")/sandbox-XXXXXX")
    export TOMBOLO_SANDBOX
    trap 'rm -rf "$TOMBOLO_SANDBOX"' EXIT
    unshare --net --ipc --mount --pid --fork --kill-child --mount-proc "$0" "$@"
    exit
fi

ip link set lo up
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for folder in etc var; do
    mkdir -p "$TOMBOLO_SANDBOX/$folder/upper" "$TOMBOLO_SANDBOX/$folder/work"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$TOMBOLO_SANDBOX/$folder/upper,workdir=$TOMBOLO_SANDBOX/$folder/work" overlay "/$folder"
done
mkdir -p /etc/libvirt /var/lib/libvirt/images
# Asked for by libvirt, used by nothing.
getent passwd libvirt-qemu >/dev/null || echo "libvirt-qemu:x:64055:65534::/nonexistent:/usr/sbin/nologin" >>/etc/passwd
getent group libvirt-qemu >/dev/null || echo "libvirt-qemu:x:64055:" >>/etc/group
# root's own, so no question of users; no cgroups, no daemon that keeps logs.
cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
CONF
printf 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n' >/etc/libvirt/libvirtd.conf
libvirtd >"$TOMBOLO_SANDBOX/libvirtd.log" 2>&1 &
for _ in $(seq 100); do
    virsh --connect qemu:///system version >/dev/null 2>&1 && break
    sleep 0.2
done
virsh --connect qemu:///system version >/dev/null || { cat "$TOMBOLO_SANDBOX/libvirtd.log" >&2; exit 1; }
"$@"
