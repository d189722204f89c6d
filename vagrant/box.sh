#!/bin/bash
# Makes a Vagrant box for libvirt from a Debian mirror and nothing else.
#
#   vagrant/box.sh debian|dnf OUT.box
#
# debian is Debian 12 with a Postgres. dnf is one whose package manager is dnf and which calls itself Fedora: no
# mirror of a distribution with rpm is needed.
#
# The box has no boot loader: its kernel and initrd lie beside the image, and its own Vagrantfile has
# libvirt boot them. What the estate's machines need is in it, because they may have no way out.
set -euo pipefail
kind=$1 out=$(realpath -m "$2")
here=$(dirname "$(realpath "$0")")
case "$kind" in debian | dnf) ;; *) echo "box.sh: $kind is neither debian nor dnf" >&2; exit 2 ;; esac
[ "$(id -u)" = 0 ] || { echo "box.sh: this needs root" >&2; exit 1; }
mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$(dirname "$out")/box-XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root

# A server with systemd's network and names; what Vagrant and Ansible ask for; what ours is asked with.
packages=(
    linux-image-cloud-amd64 initramfs-tools systemd-sysv systemd-resolved libnss-resolve libnss-myhostname dbus
    openssh-server sudo rsync python3 ca-certificates
    iproute2 procps kmod nftables curl
)
if [ "$kind" = debian ]; then packages+=(python3-apt postgresql); else packages+=(rpm dnf); fi
include=$(IFS=,; echo "${packages[*]}")
echo "making a Debian 12 in $root"
unshare --mount mmdebstrap --quiet --variant=minbase --include="$include" bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}" \
    2>"$work/log" || { tail -n 20 "$work/log" >&2; exit 1; }

# The user that Vagrant logs in as, with the key that everybody has; Vagrant changes it at the first boot.
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
inside useradd --create-home --shell /bin/bash --password '*' vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
chmod 0440 "$root/etc/sudoers.d/vagrant"
key=$(ruby -e 'puts Gem::Specification.find_by_name("vagrant").gem_dir')/keys/vagrant.pub
install -D -m 0600 "$key" "$root/home/vagrant/.ssh/authorized_keys"
chmod 0700 "$root/home/vagrant/.ssh"
inside chown -R vagrant:vagrant /home/vagrant/.ssh
echo 'UseDNS no' >"$root/etc/ssh/sshd_config.d/vagrant.conf"

# The first link is Vagrant's own; it configures the others.
printf '[Match]\nName=eth0\n\n[Network]\nDHCP=ipv4\n' >"$root/etc/systemd/network/10-eth0.network"
echo "/dev/vda / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
echo "$kind" >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$kind" >"$root/etc/hosts"
# A list of packages that cannot be fetched would be an error to Ansible.
sed -i 's/^deb /# &/' "$root/etc/apt/sources.list"
systemctl --root="$root" --quiet enable systemd-networkd systemd-resolved ssh
# No database runs before one is asked for; daily work of a long-lived server only slows an emulated one.
[ "$kind" = dnf ] || systemctl --root="$root" --quiet disable postgresql
systemctl --root="$root" --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer

# Only what leads to the disk: an emulated processor takes long to unpack drivers of all machines.
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/box"
printf '%s\n' virtio_pci virtio_blk ext4 >>"$root/etc/initramfs-tools/modules"
inside update-initramfs -u -k all >>"$work/log" 2>&1
cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
cp "$root"/boot/initrd.img-* "$work/initrd"
rm -rf "${root:?}"/boot/* "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/etc/ssh/ssh_host_*
rm -f "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
# Every copy makes ssh keys of its own.
cat >"$root/etc/systemd/system/ssh-host-keys.service" <<'UNIT'
[Unit]
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=multi-user.target
UNIT
systemctl --root="$root" --quiet enable ssh-host-keys

# As tests/ansible/dnf.rs has it. Ansible takes apt for the package manager of whatever is a Debian.
if [ "$kind" = dnf ]; then
    rpmbuild -bb --quiet --define "_topdir $work/rpm" "$here/../tests/src/machine/distribution.spec" >>"$work/log" 2>&1
    cp "$work"/rpm/RPMS/noarch/distribution-*.rpm "$root/root/distribution.rpm"
    inside rpm -i /root/distribution.rpm
    mkdir -p "$root/etc/yum.repos.d"
    echo 12 >"$root/etc/dnf/vars/releasever"
    rm "$root/usr/bin/apt-get" "$root/usr/bin/apt" "$root/etc/debian_version" "$root/root/distribution.rpm"
    printf 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=12\n' >"$root/usr/lib/os-release"
    echo 'Fedora release 12 (Test)' >"$root/etc/redhat-release"
fi

gigabytes=3
truncate -s "${gigabytes}G" "$work/raw"
mkfs.ext4 -q -F -E lazy_itable_init=0 -d "$root" "$work/raw"
qemu-img convert -c -O qcow2 "$work/raw" "$work/box.img"
echo "{\"provider\": \"libvirt\", \"format\": \"qcow2\", \"virtual_size\": $gigabytes}" >"$work/metadata.json"
cat >"$work/Vagrantfile" <<'RUBY'
Vagrant.configure("2") do |config|
  # By its network, whatever it calls itself.
  config.vm.guest = :debian
  config.vm.provider :libvirt do |libvirt|
    libvirt.kernel = File.expand_path("vmlinuz", __dir__)
    libvirt.initrd = File.expand_path("initrd", __dir__)
    libvirt.cmd_line = "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet"
  end
end
RUBY
tar -C "$work" -cf "$out.partial" metadata.json Vagrantfile vmlinuz initrd box.img
mv "$out.partial" "$out"
echo "$out: $(du -h "$out" | cut -f1)"
