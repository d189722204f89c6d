#!/bin/bash
# The whole of it, in a sandbox: the estate up, a meshed request, each SCENARIO that is named, and all gone again.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cd "$here"
# Boxes and machines are the sandbox's own, and go with it.
export VAGRANT_HOME="$TOMBOLO_SANDBOX/home" VAGRANT_DOTFILE_PATH="$TOMBOLO_SANDBOX/machines" VAGRANT_CHECKPOINT_DISABLE=1
export ANSIBLE_HOME="$TOMBOLO_SANDBOX/ansible"
vagrant up --provider libvirt --no-parallel --no-color
for scenario in request "$@"; do make --no-print-directory -C .. "vagrant-$scenario"; done
vagrant destroy --force --no-parallel
left=$(virsh --connect qemu:///system list --all --name)$(virsh --connect qemu:///system vol-list default | grep tombolo_ || true)
[ -z "$left" ] || { echo "vagrant destroy left: $left" >&2; exit 1; }
echo "vagrant-check: up in VMs, meshed, gone"
