#!/bin/sh
# Builds the images of packaging/Containerfile as OCI archives: images.sh PROGRAMS OUT
#
# Storage of its own, gone at the end: nothing of this machine's container engines is touched.
set -eu
programs=$1 out=$2
here=$(dirname "$0")
mkdir -p "$out"
storage=$(mktemp -d)
b() { buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs "$@"; }
trap 'b rmi --all --force >/dev/null 2>&1 || :; rm -rf "$storage"' EXIT
for image in agent controlplane; do
    b build --quiet --isolation chroot --target "$image" --timestamp "${SOURCE_DATE_EPOCH:-0}" \
        --tag "tombolo-$image" --file "$here/Containerfile" "$programs" >/dev/null
    rm -f "$out/tombolo-$image.tar"
    b push --quiet "tombolo-$image" "oci-archive:$out/tombolo-$image.tar:tombolo-$image"
    echo "$out/tombolo-$image.tar"
done
