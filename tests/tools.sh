#!/bin/sh
# Installs the tools that `make demo` and `make test` use and this machine lacks (Debian), and says so.
set -eu
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need nft nftables
need ip iproute2
need nsenter util-linux
need setpriv util-linux
need tcpdump tcpdump
need curl curl
need dig dnsutils
need nc netcat-openbsd
need cc build-essential
need debootstrap debootstrap
need systemd-nspawn systemd-container
need dpkg-deb dpkg
need rpmbuild rpm
need createrepo_c createrepo-c
need apt-ftparchive apt-utils
need gpg gpg
need gpg-agent gpg-agent
need python3 python3
need lintian lintian
need rpmlint rpmlint
need apparmor_parser apparmor
need wget wget
need ufw ufw
need buildah buildah
need crun crun
[ -e /usr/lib/python3/dist-packages/firewall/core/io/service.py ] || missing="$missing python3-firewall"
[ -n "$(ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null)" ] || missing="$missing postgresql"
rustup component list --installed 2>/dev/null | grep -q rustfmt || command -v rustfmt >/dev/null 2>&1 || rustup component add rustfmt clippy
[ -z "$missing" ] && exit 0
echo "installing with apt-get:$missing"
[ "$(id -u)" = 0 ] || { echo "this needs root: it installs packages and makes network namespaces" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# A Postgres for tests only: its package must not start a server of its own.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
