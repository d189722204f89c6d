#!/bin/bash
# What can happen to a mesh, done to the estate that is up. Each says what it does and fails when a promise is broken.
#
#   vagrant/scenario.sh request | kill-controlplane | partition | reboot-storm | rolling-upgrade
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"
ssh_config=$(mktemp)
trap 'rm -f "$ssh_config"' EXIT
vagrant ssh-config >"$ssh_config" 2>/dev/null || true
[ -s "$ssh_config" ] || { echo "the estate is not up: make vagrant-up" >&2; exit 1; }

say() { echo "--- $*"; }
# on MACHINE SCRIPT: as root there.
on() { ssh -F "$ssh_config" -o ConnectTimeout=30 -o ServerAliveInterval=10 "$1" sudo sh -eu -s <<<"$2"; }
# play PLAYBOOK ARGUMENT…: of the collection, on the machines that Vagrant provisioned by it.
play() {
    ANSIBLE_INVENTORY="inventory.yml,${VAGRANT_DOTFILE_PATH:-.vagrant}/provisioners/ansible/inventory" LC_ALL=${LC_ALL:-C.UTF-8} \
        ../target/ansible/venv/bin/ansible-playbook "tombolo.mesh.$1" "${@:2}"
}
# eventually SECONDS WHAT COMMAND…: tries until it succeeds.
eventually() {
    local deadline=$((SECONDS + $1)) what=$2 said
    shift 2
    until said=$("$@" 2>&1); do
        [ $SECONDS -lt $deadline ] || { echo "not so: $what; last: $said" >&2; exit 1; }
        sleep 2
    done
    say "$what"
}
request() { on web "curl -fsS --max-time 20 http://orders.shop.mesh/" | grep "hello from orders"; }
connected() { on "$1" "tombolo status -o json" | grep -q '"connected": *true'; }
refused() { on web "! curl -fsS --max-time 20 http://orders.shop.mesh/"; }
# is HOST STATE: in the eyes of the control plane.
is() { on controlplane "tombolo host list" | grep "^$1 *$2 "; }
# How many connections of web's identity the agent of orders has served.
served() { on orders "journalctl -u tombolo-agent TARGET=access -o json" | grep -c 'spiffe://corp.example/ns/shop/sa/web' || true; }

meshed_request() {
    local before
    before=$(served)
    request
    more() { [ "$(served)" -gt "$before" ]; }
    eventually 60 "orders served it to spiffe://corp.example/ns/shop/sa/web" more
}

# No packet passes between the control plane and ADDRESS.
cut() {
    on controlplane "nft add table inet partition
        nft 'add chain inet partition input { type filter hook input priority -10; }'
        nft 'add chain inet partition output { type filter hook output priority -10; }'
        nft add rule inet partition input ip saddr $1 drop
        nft add rule inet partition output ip daddr $1 drop"
}
heal() { on controlplane "nft delete table inet partition"; }

# A client that goes on asking on web while other things happen.
ask_on_and_on() {
    on web 'cat >/run/systemd/system/asking.service <<UNIT
[Service]
ExecStart=/bin/sh -c "while sleep 0.5; do curl -fsS --max-time 20 -o /dev/null http://orders.shop.mesh/ && echo answered || echo failed; done"
UNIT
        systemctl daemon-reload
        systemctl start asking'
}
answers() { on web "journalctl -u asking -o cat --since -1h" | grep -c "^$1\$" || true; }
stop_asking() {
    on web "systemctl stop asking"
    local answered failed
    answered=$(answers answered) failed=$(answers failed)
    say "meanwhile: $answered requests answered, $failed failed"
    [ "$answered" -gt 0 ] && [ "$failed" = 0 ] || { echo "an upgrade fails no request" >&2; exit 1; }
}

case ${1:-} in
request)
    eventually 120 "web asked orders through the mesh" request
    meshed_request
    say "legacy, which has no agent, asks in plaintext, as orders' policy allows"
    on legacy "curl -fsS --max-time 20 http://192.168.56.11:8080/"
    ;;
kill-controlplane)
    say "killing the control plane for good"
    on controlplane "systemctl mask --runtime --quiet tombolo-controlplane; systemctl kill -s KILL tombolo-controlplane"
    meshed_request
    say "web's agent starts again without a control plane"
    on web "systemctl restart tombolo-agent"
    eventually 120 "web is in the mesh by what it remembers" request
    say "and now it comes back"
    on controlplane "systemctl unmask --runtime --quiet tombolo-controlplane; systemctl start tombolo-controlplane"
    eventually 120 "web has found it" connected web
    eventually 120 "orders has found it" connected orders
    ;;
partition)
    say "cutting web off from the control plane"
    cut 192.168.56.12
    eventually 180 "the control plane misses web" is web away
    meshed_request
    say "the operator forbids it; web cannot hear of that, orders can"
    on controlplane 'tombolo apply -f - <<POLICY
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nobody, namespace: shop},
 spec: {selector: {matchLabels: {app: orders}}, action: DENY, rules: [{}]}}
POLICY'
    eventually 120 "orders obeys the new policy" refused
    on controlplane "tombolo delete authorizationpolicy nobody -n shop"
    eventually 120 "and obeys when it is taken back" request
    heal
    eventually 180 "healed: web has the control plane" connected web

    say "cutting orders off from the control plane"
    cut 192.168.56.11
    eventually 180 "the control plane misses orders" is orders away
    eventually 120 "and web is told that nobody serves it" refused
    say "who does not ask the mesh is served as before"
    on legacy "curl -fsS --max-time 20 http://192.168.56.11:8080/"
    heal
    eventually 180 "healed: web asked orders through the mesh" request
    ;;
reboot-storm)
    say "every machine reboots at once"
    for machine in controlplane orders web legacy; do on "$machine" "systemctl --no-block reboot" || true; done
    sleep 5
    eventually 900 "web asked orders through the mesh, and nobody lent a hand" request
    eventually 300 "web has the control plane" connected web
    eventually 300 "orders has the control plane" connected orders
    ;;
rolling-upgrade)
    [ -n "${VERSION:-}" ] || { echo "say which VERSION; make vagrant-rolling-upgrade makes one" >&2; exit 2; }
    vagrant rsync controlplane
    ask_on_and_on
    say "the control plane goes to $VERSION"
    play site --limit tombolo_controlplane --extra-vars "controlplane_version=$VERSION"
    eventually 120 "a request goes through" request
    say "the hosts go to $VERSION, one after the other, each through its health gate"
    play rolling_upgrade --extra-vars "upgrade_to=$VERSION"
    eventually 120 "a request goes through" request
    stop_asking
    # The programs may be the same: the packages tell.
    for machine in controlplane orders web; do
        on "$machine" "dpkg-query -W tombolo 2>/dev/null || rpm -q tombolo" | grep -F "$VERSION"
    done
    ;;
*)
    sed -n '2,4p' "$0" >&2
    exit 2
    ;;
esac
say "$1: as promised"
