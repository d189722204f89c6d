purged() {
    rm -rf /var/lib/tombolo-controlplane /etc/tombolo/controlplane.d
    rmdir /etc/tombolo 2>/dev/null || :
    forget_unit $unit purged
}
