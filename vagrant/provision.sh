#!/bin/sh
# What a machine of the estate gets, run on it as root: `provision.sh NAME`. Running it again changes nothing.
set -eu
name=$1
repository=http://cp.corp.example:8000

grep -q cp.corp.example /etc/hosts || echo '192.168.56.10 cp.corp.example' >>/etc/hosts

# The repository's server may just be starting.
fetch() { curl -fsS --retry 60 --retry-delay 1 --retry-connrefused -o "$2" "$repository/$1"; }

# As docs/packages.md says it. Only our repository is asked: the machine may have no way out.
install_packages() {
    if ! command -v apt-get >/dev/null; then
        fetch tombolo.repo /etc/yum.repos.d/tombolo.repo
        dnf install -y --disablerepo='*' --enablerepo=tombolo "$@"
        return
    fi
    fetch tombolo-archive-keyring.gpg /usr/share/keyrings/tombolo-archive-keyring.gpg
    fetch tombolo.sources /etc/apt/sources.list.d/tombolo.sources
    only="-o Dir::Etc::sourcelist=/etc/apt/sources.list.d/tombolo.sources -o Dir::Etc::sourceparts=-"
    # shellcheck disable=SC2086
    apt-get update -qq $only
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"
}

# An emulated processor on a busy machine needs minutes for what takes a second.
for unit in tombolo-agent tombolo-controlplane; do
    install -d "/etc/systemd/system/$unit.service.d"
    printf '[Service]\nTimeoutStartSec=10min\nWatchdogSec=5min\n' >"/etc/systemd/system/$unit.service.d/estate.conf"
done

# patiently COMMAND…: tries for some minutes.
patiently() {
    for _ in 1 2 3 4 5 6 7 8 9; do
        if "$@"; then return; fi
        sleep 10
    done
    "$@"
}

# serve UNIT COMMAND…: runs now and after every boot.
serve() {
    unit=$1
    shift
    printf '[Service]\nExecStart=%s\nRestart=always\n\n[Install]\nWantedBy=multi-user.target\n' "$*" \
        >"/etc/systemd/system/$unit.service"
    systemctl daemon-reload
    systemctl enable --quiet --now "$unit"
}

case $name in
controlplane)
    serve repository python3 -m http.server 8000 --directory /srv/repository
    install_packages tombolo tombolo-controlplane
    # A database is the machine's own; where the box has none, the distribution's is installed.
    command -v pg_lsclusters >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql; }
    [ -n "$(pg_lsclusters --no-header)" ] || pg_createcluster "$(ls /usr/lib/postgresql)" main
    systemctl enable --quiet --now postgresql
    if [ ! -e /etc/credstore/tombolo-controlplane.store-password ]; then
        password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
        install -d -m 0700 /etc/credstore
        (umask 077 && printf %s "$password" >/etc/credstore/tombolo-controlplane.store-password)
        echo "create role tombolo login password '$password'; create database mesh owner tombolo" | tr ';' '\n' |
            while read -r statement; do runuser -u postgres -- psql -q -c "$statement"; done
    fi
    install -d /etc/tombolo/controlplane.d
    cat >/etc/tombolo/controlplane.d/estate.toml <<TOML
[mesh]
trust_domain = "corp.example"
advertise = ["cp.corp.example"]

[store]
url = "postgres://tombolo@127.0.0.1/mesh"
TOML
    systemctl enable --quiet --now tombolo-controlplane
    data=/var/lib/tombolo-controlplane
    # While it starts, a busy machine may take longer than a handshake may.
    patiently tombolo login https://cp.corp.example:15014 --ca $data/ca.pem --token-file $data/admin.token
    patiently tombolo apply -f /srv/repository/shop.yaml
    ;;
orders)
    install -d /srv/orders
    echo 'hello from orders' >/srv/orders/index.html
    serve orders python3 -m http.server 8080 --directory /srv/orders
    install_packages tombolo-agent
    ;;
web)
    install_packages tombolo-agent
    ;;
legacy) ;;
esac
