unit=tombolo-controlplane.service

installed() {
    systemd-sysusers tombolo-controlplane.conf || :
    systemd-tmpfiles --create tombolo-controlplane.conf || :
    know_unit $unit
    reload_units
    if [ -n "$1" ] && has_systemd && systemctl --quiet is-active $unit; then
        if mistakes=$(tombolo-controlplane serve --config /etc/tombolo/controlplane.toml --print-config 2>&1 >/dev/null)
        then
            restart_unit $unit || say "the new control plane does not start: journalctl -u tombolo-controlplane"
        else
            say "$(earlier 'control plane' "$1") goes on running: the new one cannot use the settings. $mistakes"
            say "correct them, then: systemctl restart tombolo-controlplane"
        fi
    fi
}

# Hosts go on with what they know.
removing() { stop_unit $unit || :; }

removed() {
    forget_unit $unit removed
    reload_units
}
