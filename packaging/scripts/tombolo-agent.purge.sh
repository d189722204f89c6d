purged() {
    # The control plane forgets the host, if it can be reached and the program is still here.
    if command -v tombolo >/dev/null; then timeout 10 tombolo leave --force >/dev/null 2>&1 || :; fi
    rm -rf /var/lib/tombolo /etc/tombolo/agent.d
    rm -f /etc/credstore/tombolo.join-token
    rmdir /etc/tombolo 2>/dev/null || :
    forget_unit $unit purged
}
