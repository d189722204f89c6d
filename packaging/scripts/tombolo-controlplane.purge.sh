purged() {
    rm -rf /var/lib/tombolo-controlplane /etc/tombolo/controlplane.d
    # What was given to it and to nobody else: the password, the authority.
    rm -f /etc/credstore/tombolo-controlplane.* /etc/credstore.encrypted/tombolo-controlplane.*
    rmdir /etc/tombolo 2>/dev/null || :
    forget_unit $unit purged
}
