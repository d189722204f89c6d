#!/bin/sh
# Makes the repository that the estate installs from, of built programs: `repository.sh PROGRAMS OUT [VERSION]`.
# Versions gather in it. Its key is of no worth.
set -eu
programs=$(realpath "$1") out=$(realpath -m "$2") version=${3:-}
cd "$(dirname "$(realpath "$0")")/.."
mkdir -p "$out/programs"
rm -rf "$out/packages"
# Symbols would be nine tenths of what every machine copies.
for program in tombolo tombolo-controlplane; do strip -o "$out/programs/$program" "$programs/$program"; done
# shellcheck disable=SC2086
cargo xtask package --quick --programs "$out/programs" --out "$out/packages" ${version:+--version $version}
export GNUPGHOME="$out/key"
key=$(packaging/test-key.sh)
packaging/repo.sh --packages "$out/packages" --out "$out/repository" --key "$key" --url http://192.168.56.10:8000
gpgconf --kill gpg-agent
