#!/bin/sh
# Installs what Vagrant with libvirt needs and this machine lacks (Debian), and says so. No service is started:
# libvirt's programs come without its units, for vagrant/sandbox.sh to start.
set -eu
missing=
need() { [ -e "$1" ] || missing="$missing $2"; }
need /usr/bin/vagrant vagrant
need /usr/share/doc/vagrant-libvirt vagrant-libvirt
need /usr/bin/qemu-system-x86_64 qemu-system-x86
need /usr/bin/qemu-img qemu-utils
need /usr/sbin/libvirtd libvirt-daemon
need /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so libvirt-daemon-driver-qemu
need /usr/bin/virsh libvirt-clients
need /usr/sbin/dnsmasq dnsmasq-base
need /usr/sbin/iptables iptables
need /usr/bin/rsync rsync
need /usr/bin/ssh openssh-client
need /usr/bin/mmdebstrap mmdebstrap
need /usr/sbin/mkfs.ext4 e2fsprogs
[ -z "$missing" ] && exit 0
echo "installing with apt-get:$missing"
[ "$(id -u)" = 0 ] || { echo "this needs root: it installs packages" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
