unit=tombolo-agent.service

installed() {
    systemd-tmpfiles --create tombolo-agent.conf || :
    if [ -r /sys/module/apparmor/parameters/enabled ] && command -v apparmor_parser >/dev/null; then
        apparmor_parser -r -T -W /etc/apparmor.d/tombolo-agent || say "the AppArmor profile is not loaded"
    fi
    enable_unit $unit "$1"
    reload_units
    state=
    if has_systemd; then state=$(systemctl show --value -p ActiveState $unit); fi
    if [ "$state" = active ] || [ "$state" = reloading ] || [ "$state" = activating ]; then
        hand_over "$1" "$state"
    elif [ -e /var/lib/tombolo/identity.json ]; then
        say "this host has joined and its agent does not run: systemctl start tombolo-agent"
    fi
}

# The one place where a running agent gives way to the one that was just installed.
hand_over() {
    if ! mistakes=$(tombolo agent --config /etc/tombolo/agent.toml --print-config 2>&1 >/dev/null); then
        say "$(earlier agent "$1") goes on running: the new one cannot use the settings. $mistakes"
        say "correct them, then: systemctl restart tombolo-agent"
        return 0
    fi
    # Without a cut: the running agent starts the new one and keeps what is open, and goes on if that one does
    # not serve. It is restarted where that cannot be: one that does not serve yet, one from before it could.
    code=2
    if [ "$2" != activating ]; then
        said=$(tombolo agent --config /etc/tombolo/agent.toml --hand-over 2>&1) && return 0 || code=$?
    fi
    if [ "$code" -eq 2 ]; then
        restart_unit $unit || say "the new agent does not start: journalctl -u tombolo-agent"
        return 0
    fi
    say "$(earlier agent "$1") goes on running. $said"
    say "see journalctl -u tombolo-agent, then: tombolo agent --hand-over, or systemctl restart tombolo-agent"
}

# Out of the path first: the agent drains and takes its rules away; what a killed one left goes too.
removing() {
    stop_unit $unit || :
    tombolo agent --cleanup --all || say "rules are left: see \`nft list ruleset\` and \`ip rule\`"
}

removed() {
    if [ -r /sys/module/apparmor/parameters/enabled ] && command -v apparmor_parser >/dev/null; then
        echo 'profile tombolo-agent { }' | apparmor_parser -R >/dev/null 2>&1 || :
    fi
    forget_unit $unit removed
    reload_units
}
