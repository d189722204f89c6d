#!/bin/sh
# Makes a signed apt repository and a signed dnf repository of packages (deb and rpm, any versions).
#
#   packaging/repo.sh --packages DIR --out DIR --key KEYID [--url URL] [--valid-days N]
#
# The secret key is taken from GNUPGHOME. Packages that are in OUT already stay: versions gather there, so
# that a host can go back. Needs apt-utils, rpm, createrepo-c, gpg.
set -eu
packages='' out='' key='' url=https://packages.tombolo.example valid=30
while [ $# -gt 0 ]; do
    case "$1" in
        --packages) packages=$2 ;;
        --out) out=$2 ;;
        --key) key=$2 ;;
        --url) url=$2 ;;
        --valid-days) valid=$2 ;;
        *) echo "repo.sh: $1 is unknown" >&2; exit 2 ;;
    esac
    shift 2
done
if [ -z "$packages" ] || [ -z "$out" ] || [ -z "$key" ]; then
    sed -n '2,8p' "$0" >&2
    exit 2
fi
mkdir -p "$out"
packages=$(cd "$packages" && pwd)
out=$(cd "$out" && pwd)
export GPG_TTY=
sign() { gpg --batch --yes --local-user "$key" --digest-algo SHA512 "$@"; }

# Who signs: for apt binary, for rpm and people in letters.
gpg --batch --yes --output "$out/tombolo-archive-keyring.gpg" --export "$key"
gpg --batch --yes --armor --output "$out/tombolo-archive-keyring.asc" --export "$key"
[ -s "$out/tombolo-archive-keyring.gpg" ] || { echo "repo.sh: there is no key $key in ${GNUPGHOME:-~/.gnupg}" >&2; exit 1; }

# apt. Its Release names every index also by its hash, so that an update under way never mixes two states.
pool=$out/deb/pool/main suite=$out/deb/dists/stable
mkdir -p "$pool" "$suite"
for deb in "$packages"/*.deb; do install -m 0644 "$deb" "$pool/"; done
for arch in amd64 arm64; do
    index=$suite/main/binary-$arch
    mkdir -p "$index/by-hash/SHA256" "$index/by-hash/SHA512"
    (cd "$out/deb" && apt-ftparchive --arch "$arch" packages pool/main) >"$index/Packages"
    gzip -9nk -f "$index/Packages"
    xz -6k -f "$index/Packages"
    # apt asks by the strongest hash that Release has.
    for file in "$index"/Packages*; do
        install -m 0644 "$file" "$index/by-hash/SHA256/$(sha256sum "$file" | cut -d' ' -f1)"
        install -m 0644 "$file" "$index/by-hash/SHA512/$(sha512sum "$file" | cut -d' ' -f1)"
    done
done
rm -f "$suite/InRelease" "$suite/Release.gpg" "$suite/Release"
(
    cd "$suite"
    apt-ftparchive -o APT::FTPArchive::Release::Origin=Tombolo -o APT::FTPArchive::Release::Label=Tombolo \
        -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
        -o "APT::FTPArchive::Release::Architectures=amd64 arm64" -o APT::FTPArchive::Release::Components=main \
        -o APT::FTPArchive::Release::Acquire-By-Hash=yes \
        -o APT::FTPArchive::Release::Patterns::=Packages -o APT::FTPArchive::Release::Patterns::='Packages.*' \
        -o APT::FTPArchive::Release::MD5=no -o APT::FTPArchive::Release::SHA1=no release . >../Release.new
)
mv "$suite/../Release.new" "$suite/Release"
# apt refuses a list that is older: an attacker cannot show hosts yesterday's for ever.
sed -i "/^Date:/a Valid-Until: $(date -u -d "$valid days" '+%a, %d %b %Y %H:%M:%S +0000')" "$suite/Release"
sign --clearsign --output "$suite/InRelease" "$suite/Release"
sign --armor --detach-sign --output "$suite/Release.gpg" "$suite/Release"
cat >"$out/tombolo.sources" <<EOF
Types: deb
URIs: $url/deb
Suites: stable
Components: main
Signed-By: /usr/share/keyrings/tombolo-archive-keyring.gpg
EOF

# dnf: every package is signed, and so is the list of them.
mkdir -p "$out/rpm"
for rpm in "$packages"/*.rpm; do
    signed=$out/rpm/$(basename "$rpm")
    install -m 0644 "$rpm" "$signed"
    rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $key" --define "_gpg_digest_algo sha512" --addsign "$signed" >/dev/null
done
createrepo_c --quiet --update "$out/rpm"
sign --armor --detach-sign --output "$out/rpm/repodata/repomd.xml.asc" "$out/rpm/repodata/repomd.xml"
cat >"$out/tombolo.repo" <<EOF
[tombolo]
name=Tombolo
baseurl=$url/rpm
enabled=1
gpgcheck=1
repo_gpgcheck=1
gpgkey=$url/tombolo-archive-keyring.asc
EOF
echo "$out: signed by $key, valid for $valid days"
