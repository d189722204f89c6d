//! From what people typed to what the agent uses: parses, ranges, and what cannot be together.
//!
//! Pure: every mistake is collected with the layer of its key, none ends the checking.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use api::{InboundMode, Selector};
use proxy::config::Tunnel;

use super::layers::{DEFAULT_LAYER, Effective};
use super::raw::{RawConfig, RawWorkload};
use super::{
    Capture, Config, ControlPlane, Dns, EnabledAtStart, Exclude, Health, Inbound, Interception, Log, LogFormat,
    Mistake, OnAgentLoss, Outbound, Paths, Resolved, WorkloadOverride,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest path a Unix socket may have (unix(7): 108 bytes with the end mark).
const SOCKET_PATH_BYTES: usize = 107;

pub(super) fn check(raw: &RawConfig, effective: &[Effective], mistakes: &mut Vec<Mistake>) -> Config {
    let mut on = Checker { effective, mistakes };
    Config {
        paths: paths(raw, &mut on),
        log: Log {
            format: on.one_of(
                "log.format",
                &raw.log.format,
                &[
                    ("auto", LogFormat::Auto),
                    ("text", LogFormat::Text),
                    ("json", LogFormat::Json),
                    ("journald", LogFormat::Journald),
                ],
            ),
            filter: raw.log.filter.clone(),
        },
        control_plane: control_plane(raw, &mut on),
        interception: interception(raw, &mut on),
        outbound: outbound(raw, &mut on),
        inbound: inbound(raw, &mut on),
        dns: dns(raw, &mut on),
        metrics: on.addresses("metrics.listen", &raw.metrics.listen, Reach::Any),
        readiness: on.addresses("readiness.listen", &raw.readiness.listen, Reach::Any),
        admin: on.addresses("admin.listen", &raw.admin.listen, Reach::Loopback),
        health: Health { exec: raw.health.exec },
        drain_deadline: on.duration("drain.deadline", &raw.drain.deadline, Duration::ZERO..=HOUR),
        drain_hand_over: on.duration("drain.hand_over", &raw.drain.hand_over, Duration::ZERO..=30 * 24 * HOUR),
        workers: on.count("runtime.workers", raw.runtime.workers, 0..=256),
        workloads: workloads(&raw.workload, &mut on),
        effective: effective.to_vec(),
    }
}

fn paths(raw: &RawConfig, on: &mut Checker<'_>) -> Paths {
    let paths = Paths {
        state_dir: on.absolute("paths.state_dir", &raw.paths.state_dir),
        run_dir: on.absolute("paths.run_dir", &raw.paths.run_dir),
    };
    let bytes = paths.admin_socket().as_os_str().len();
    if bytes > SOCKET_PATH_BYTES {
        on.mistake(
            "paths.run_dir",
            format!(
                "too long: {} has {bytes} bytes, a socket's path may have {SOCKET_PATH_BYTES}",
                paths.admin_socket().display()
            ),
        );
    }
    paths
}

fn control_plane(raw: &RawConfig, on: &mut Checker<'_>) -> ControlPlane {
    let raw = &raw.control_plane;
    let url = Some(raw.url.clone()).filter(|url| !url.is_empty());
    if let Some(url) = &url
        && let Err(error) = crate::config::check::control_plane_url(url)
    {
        on.mistake("control_plane.url", error);
    }
    let checked = ControlPlane {
        url,
        connect_timeout: on.duration("control_plane.connect_timeout", &raw.connect_timeout, 100 * MS..=5 * MINUTE),
        keepalive_interval: on.duration("control_plane.keepalive_interval", &raw.keepalive_interval, SECOND..=HOUR),
        keepalive_timeout: on.duration("control_plane.keepalive_timeout", &raw.keepalive_timeout, SECOND..=5 * MINUTE),
        reconnect_min: on.duration("control_plane.reconnect_min", &raw.reconnect_min, 10 * MS..=MINUTE),
        reconnect_max: on.duration("control_plane.reconnect_max", &raw.reconnect_max, 100 * MS..=10 * MINUTE),
    };
    if checked.reconnect_min > checked.reconnect_max {
        on.mistake("control_plane.reconnect_min", "longer than control_plane.reconnect_max".into());
    }
    checked
}

/// `https://HOST[:PORT]`, or `HOST[:PORT]` for short; answers host and port.
pub fn control_plane_url(text: &str) -> Result<(String, u16), String> {
    let shape = || format!("{text:?} is not https://HOST[:{}]", api::ports::CONTROL_PLANE_GRPC);
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = url::Url::parse(&full).map_err(|_| shape())?;
    if url.scheme() != "https" {
        return Err(format!("{text:?}: the control plane is reached by https only"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
        return Err(shape());
    }
    let host = url.host().ok_or_else(shape)?;
    let host = match host {
        url::Host::Domain(name) => name.to_owned(),
        url::Host::Ipv4(address) => address.to_string(),
        url::Host::Ipv6(address) => address.to_string(),
    };
    // `https` has a default port of its own, 443: only a written port counts.
    let written = full.trim_end_matches('/').rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let port = match (url.port(), written) {
        (Some(port), _) => port,
        (None, Some((_, "443"))) => 443,
        (None, _) => api::ports::CONTROL_PLANE_GRPC,
    };
    Ok((host, port))
}

fn interception(raw: &RawConfig, on: &mut Checker<'_>) -> Interception {
    let raw = &raw.interception;
    Interception {
        enabled_at_start: on.one_of(
            "interception.enabled_at_start",
            &raw.enabled_at_start,
            &[
                ("remembered", EnabledAtStart::Remembered),
                ("always", EnabledAtStart::Always),
                ("never", EnabledAtStart::Never),
            ],
        ),
        on_agent_loss: on.one_of(
            "interception.on_agent_loss",
            &raw.on_agent_loss,
            &[("bypass", OnAgentLoss::Bypass), ("hold", OnAgentLoss::Hold), ("block", OnAgentLoss::Block)],
        ),
        capture: on.one_of("interception.capture", &raw.capture, &[("mesh", Capture::Mesh), ("all", Capture::All)]),
        source_preservation: raw.source_preservation,
        verify_interval: on.duration("interception.verify_interval", &raw.verify_interval, SECOND..=HOUR),
        cgroup_refresh: on.duration("interception.cgroup_refresh", &raw.cgroup_refresh, 100 * MS..=MINUTE),
        exclude: Exclude {
            units: on.names("interception.exclude.units", &raw.exclude.units, unit),
            uids: raw.exclude.uids.clone(),
            cgroups: on.names("interception.exclude.cgroups", &raw.exclude.cgroups, cgroup),
            cidrs: on.names("interception.exclude.cidrs", &raw.exclude.cidrs, network),
            ports: raw.exclude.ports.clone(),
            interfaces: on.names("interception.exclude.interfaces", &raw.exclude.interfaces, interface),
        },
    }
}

fn outbound(raw: &RawConfig, on: &mut Checker<'_>) -> Outbound {
    let raw = &raw.outbound;
    Outbound {
        listen: on.listen("outbound.listen", &raw.listen, Reach::Loopback),
        connect_timeout: on.duration("outbound.connect_timeout", &raw.connect_timeout, 100 * MS..=5 * MINUTE),
        max_endpoints_tried: on.count("outbound.max_endpoints_tried", raw.max_endpoints_tried, 1..=100),
        tunnel: on.one_of(
            "outbound.tunnel",
            &raw.tunnel,
            &[("auto", Tunnel::Auto), ("hbone", Tunnel::Hbone), ("tombolo/1", Tunnel::Flow)],
        ),
        idle_timeout: on.idle("outbound.idle_timeout", &raw.idle_timeout),
    }
}

fn inbound(raw: &RawConfig, on: &mut Checker<'_>) -> Inbound {
    let raw = &raw.inbound;
    Inbound {
        listen: on.listen("inbound.listen", &raw.listen, Reach::Any),
        plaintext_listen: on.listen("inbound.plaintext_listen", &raw.plaintext_listen, Reach::Any),
        handshake_timeout: on.duration("inbound.handshake_timeout", &raw.handshake_timeout, 100 * MS..=5 * MINUTE),
        max_handshakes: on.count("inbound.max_handshakes", raw.max_handshakes, 1..=1_000_000),
        connect_timeout: on.duration("inbound.connect_timeout", &raw.connect_timeout, 100 * MS..=5 * MINUTE),
        idle_timeout: on.idle("inbound.idle_timeout", &raw.idle_timeout),
    }
}

fn dns(raw: &RawConfig, on: &mut Checker<'_>) -> Dns {
    Dns {
        enabled: raw.dns.enabled,
        resolved: on.one_of(
            "dns.resolved",
            &raw.dns.resolved,
            &[("auto", Resolved::Auto), ("on", Resolved::On), ("off", Resolved::Off)],
        ),
        resolv_conf: on.absolute("dns.resolv_conf", &raw.dns.resolv_conf),
        listen: on.listen("dns.listen", &raw.dns.listen, Reach::Loopback),
        upstreams: on.names("dns.upstreams", &raw.dns.upstreams, resolver),
        timeout: on.duration("dns.timeout", &raw.dns.timeout, 100 * MS..=MINUTE),
    }
}

fn workloads(raw: &[RawWorkload], on: &mut Checker<'_>) -> Vec<WorkloadOverride> {
    let mut checked: Vec<WorkloadOverride> = Vec::new();
    for workload in raw {
        match workload_override(workload) {
            Ok(one) => {
                checked.retain(|other| (&other.namespace, &other.group) != (&one.namespace, &one.group));
                checked.push(one);
            }
            Err(what) => on.mistake("workload", what),
        }
    }
    checked
}

/// Checks one `[[workload]]`; also for `tombolo workload add`.
pub fn workload_override(raw: &RawWorkload) -> Result<WorkloadOverride, String> {
    let (namespace, group) = raw
        .group
        .split_once('/')
        .filter(|(namespace, group)| !namespace.is_empty() && !group.is_empty() && !group.contains('/'))
        .ok_or_else(|| format!("group {:?} is not NAMESPACE/WORKLOADGROUP", raw.group))?;
    let selector = Selector {
        unit: raw.unit.as_deref().map(unit).transpose()?,
        cgroup: raw.cgroup.as_deref().map(cgroup).transpose()?,
        uid: raw.uid,
    };
    let inbound = match raw.inbound.as_deref() {
        None => None,
        Some("permissive") => Some(InboundMode::Permissive),
        Some("observe") => Some(InboundMode::Observe),
        Some("strict") => Some(InboundMode::Strict),
        Some(other) => return Err(format!("inbound {other:?} is not one of permissive, observe, strict")),
    };
    Ok(WorkloadOverride {
        namespace: namespace.to_owned(),
        group: group.to_owned(),
        selector: Some(selector).filter(|selector| !selector.is_any()),
        inbound,
    })
}

fn unit(text: &str) -> Result<String, String> {
    let (name, kind) = text.rsplit_once('.').unwrap_or((text, ""));
    let known = ["service", "scope", "slice", "socket", "mount", "swap"].contains(&kind);
    if name.is_empty() || name.contains('/') || !known {
        return Err(format!("{text:?} is not a systemd unit such as orders.service"));
    }
    Ok(text.to_owned())
}

fn cgroup(text: &str) -> Result<String, String> {
    let path = text.trim_matches('/');
    if path.is_empty() || path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(format!("{text:?} is not a path below the cgroup v2 mount such as system.slice/orders.service"));
    }
    Ok(path.to_owned())
}

fn network(text: &str) -> Result<ipnet::IpNet, String> {
    let single = text.parse::<IpAddr>().map(ipnet::IpNet::from);
    single.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is not an address or network such as 10.9.0.0/16"))
}

/// The kernel's limit is 15 bytes, without `/` and spaces (dev_valid_name in net/core/dev.c).
fn interface(text: &str) -> Result<String, String> {
    let valid = (1..=15).contains(&text.len()) && !text.contains(['/', ' ', ':']) && !matches!(text, "." | "..");
    if valid { Ok(text.to_owned()) } else { Err(format!("{text:?} is not the name of an interface")) }
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    let bare = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
    bare.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is not IP or IP:PORT"))
}

/// Who may reach a listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Loopback,
    Any,
}

struct Checker<'a> {
    effective: &'a [Effective],
    mistakes: &'a mut Vec<Mistake>,
}

impl Checker<'_> {
    fn mistake(&mut self, key: &str, what: String) {
        let layer = self.effective.iter().find(|one| one.key == key).map_or(DEFAULT_LAYER, |one| one.layer.as_str());
        self.mistakes.push(Mistake { layer: layer.to_owned(), key: key.to_owned(), what });
    }

    fn duration(&mut self, key: &str, text: &str, range: RangeInclusive<Duration>) -> Duration {
        match humantime::parse_duration(text) {
            Ok(duration) if range.contains(&duration) => duration,
            Ok(_) => {
                let (least, most) = range.into_inner();
                let limits = format!("{} to {}", humantime::format_duration(least), humantime::format_duration(most));
                self.mistake(key, format!("{text} is outside {limits}"));
                least
            }
            Err(_) => {
                self.mistake(key, format!("{text:?} is not a duration such as 5s, 200ms or 1h"));
                *range.start()
            }
        }
    }

    /// Zero is never.
    fn idle(&mut self, key: &str, text: &str) -> Option<Duration> {
        Some(self.duration(key, text, Duration::ZERO..=MONTH)).filter(|limit| !limit.is_zero())
    }

    fn count(&mut self, key: &str, value: usize, range: RangeInclusive<usize>) -> usize {
        if !range.contains(&value) {
            self.mistake(key, format!("{value} is outside {} to {}", range.start(), range.end()));
        }
        value
    }

    fn one_of<T: Copy>(&mut self, key: &str, text: &str, choices: &[(&str, T)]) -> T {
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return *value;
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.mistake(key, format!("{text:?} is not one of {}", names.join(", ")));
        choices[0].1
    }

    fn names<T>(&mut self, key: &str, texts: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let mut parsed = Vec::new();
        for text in texts {
            match parse(text) {
                Ok(value) => parsed.push(value),
                Err(what) => self.mistake(key, what),
            }
        }
        parsed
    }

    /// As [`Self::addresses`], of which at least one is needed.
    fn listen(&mut self, key: &str, texts: &[String], reach: Reach) -> Vec<SocketAddr> {
        if texts.is_empty() {
            self.mistake(key, "at least one address is needed".into());
        }
        self.addresses(key, texts, reach)
    }

    fn addresses(&mut self, key: &str, texts: &[String], reach: Reach) -> Vec<SocketAddr> {
        let addresses: Vec<SocketAddr> = self.names(key, texts, |text| parse(text, "IP:PORT"));
        for address in &addresses {
            if reach == Reach::Loopback && !address.ip().is_loopback() {
                self.mistake(key, format!("{address} is not a loopback address: others must not reach this"));
            }
        }
        addresses
    }

    fn absolute(&mut self, key: &str, text: &str) -> std::path::PathBuf {
        if !text.starts_with('/') {
            self.mistake(key, format!("{text:?} is not an absolute path"));
        }
        text.into()
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str, shape: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not {shape}"))
}
