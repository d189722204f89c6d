//! How each kind of thing looks in a table and in a description. Used by `get`, `describe`, `host` and
//! `token`. What it shows is read from the JSON the control plane sent, so that a newer one's extra
//! fields do no harm.

use api::resource::KindInfo;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::commands::Item;
use crate::output::{Table, Widths};

/// What can be asked for by `get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Resource(&'static KindInfo),
    /// Every kind of resource.
    All,
    Workload,
    Host,
    Token,
}

/// One column: its title, whether only `-o wide` has it, and its text.
type Column = (&'static str, bool, fn(&Item) -> String);

/// Reads a kind as people type it.
pub(crate) fn what(text: &str) -> Result<What, String> {
    if let Some(info) = api::resource::kind(text) {
        return Ok(What::Resource(info));
    }
    match text.to_ascii_lowercase().as_str() {
        "all" => Ok(What::All),
        "workload" | "workloads" | "wl" => Ok(What::Workload),
        "host" | "hosts" => Ok(What::Host),
        "token" | "tokens" => Ok(What::Token),
        _ => {
            let kinds: Vec<&str> = api::resource::kinds().iter().map(|info| info.singular).collect();
            Err(format!("one of {}, all, workload, host, token", kinds.join(", ")))
        }
    }
}

impl What {
    pub(crate) fn singular(self) -> &'static str {
        match self {
            Self::Resource(info) => info.singular,
            Self::All => "object",
            Self::Workload => "workload",
            Self::Host => "host",
            Self::Token => "token",
        }
    }

    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Resource(info) => info.plural,
            Self::All => "objects",
            Self::Workload => "workloads",
            Self::Host => "hosts",
            Self::Token => "tokens",
        }
    }

    pub(crate) fn is_namespaced(self) -> bool {
        !matches!(self, Self::Host | Self::Token)
    }
}

/// One table for each kind among the items, with its name above when there are several.
pub(crate) fn tables(items: &[Item], wide: bool) -> String {
    let groups: Vec<&[Item]> = items.chunk_by(|a, b| a.what == b.what).collect();
    let several = groups.len() > 1;
    let tables = groups.into_iter().map(|group| {
        let title = if several { format!("{}\n", group[0].what.plural()) } else { String::new() };
        format!("{title}{}", table(group, wide).render())
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// Rows to follow earlier ones in the same columns.
pub(crate) fn rows(items: &[Item], wide: bool, widths: &mut Widths) -> String {
    let groups = items.chunk_by(|a, b| a.what == b.what);
    groups.map(|group| table(group, wide).render_after(widths)).collect()
}

fn table(items: &[Item], wide: bool) -> Table {
    let columns: Vec<&Column> = match items.first() {
        Some(item) => columns(item.what).iter().filter(|(_, only_wide, _)| wide || !only_wide).collect(),
        None => Vec::new(),
    };
    let mut table = Table::new(columns.iter().map(|(title, ..)| *title).collect::<Vec<_>>());
    for item in items {
        table.row(columns.iter().map(|(_, _, text)| text(item)).collect::<Vec<_>>());
    }
    table
}

/// What names an item among all that are watched.
pub(crate) fn key(item: &Item) -> String {
    let (meta, value) = (&item.value["metadata"], &item.value);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match item.what {
        What::Resource(_) | What::All => {
            format!("{} {}/{}", text(&value["kind"]).to_lowercase(), text(&meta["namespace"]), text(&meta["name"]))
        }
        What::Workload => format!("workload {}", text(&value["uid"])),
        What::Host => format!("host {}", text(&value["name"])),
        What::Token => format!("token {}", text(&value["id"])),
    }
}

/// What of an item counts as a change: not the time it was last seen.
pub(crate) fn essence(item: &Item) -> String {
    let mut value = item.value.clone();
    if let Some(map) = value.as_object_mut() {
        map.shift_remove("last_seen_at");
    }
    value.to_string()
}

/// The names callers use for a service.
pub(crate) fn hostnames(item: &Item) -> Vec<String> {
    let meta = &item.value["metadata"];
    match item.what {
        What::Resource(info) if info.kind == "Service" => {
            let part = |key: &str| meta[key].as_str().unwrap_or_default();
            vec![format!("{}.{}.mesh", part("name"), part("namespace"))]
        }
        What::Resource(info) if info.kind == "ServiceEntry" => strings(&item.value["spec"]["hosts"]),
        _ => Vec::new(),
    }
}

/// Name and value of everything but the spec.
pub(crate) fn facts(item: &Item) -> Vec<(&'static str, String)> {
    let (value, meta) = (&item.value, &item.value["metadata"]);
    if let What::Workload | What::Host | What::Token = item.what {
        return columns(item.what).iter().map(|(title, _, text)| (*title, text(item))).collect();
    }
    vec![
        ("Name", text(&meta["name"])),
        ("Namespace", text(&meta["namespace"])),
        ("Kind", text(&value["kind"])),
        ("Labels", pairs(&meta["labels"])),
        ("Annotations", pairs(&meta["annotations"])),
        ("Created", text(&meta["creationTimestamp"])),
        ("Revision", text(&meta["resourceVersion"])),
        ("Hostnames", hostnames(item).join(", ")),
        ("Addresses", addresses(item)),
    ]
}

const NAMESPACE: Column = ("NAMESPACE", false, |item| text(&item.value["metadata"]["namespace"]));
const NAME: Column = ("NAME", false, |item| text(&item.value["metadata"]["name"]));
const AGE: Column = ("AGE", false, |item| age(&item.value["metadata"]["creationTimestamp"]));
const SELECTOR: Column = ("SELECTOR", false, |item| pairs(&item.value["spec"]["selector"]["matchLabels"]));

fn columns(what: What) -> &'static [Column] {
    match what {
        What::Resource(info) => match info.kind {
            "Service" => SERVICE,
            "WorkloadGroup" => WORKLOAD_GROUP,
            "WorkloadEntry" => WORKLOAD_ENTRY,
            "ServiceEntry" => SERVICE_ENTRY,
            "AuthorizationPolicy" => AUTHORIZATION_POLICY,
            "PeerAuthentication" => PEER_AUTHENTICATION,
            _ => &[NAMESPACE, NAME, AGE],
        },
        What::All => &[NAMESPACE, NAME, AGE],
        What::Workload => WORKLOAD,
        What::Host => HOST,
        What::Token => TOKEN,
    }
}

const SERVICE: &[Column] = &[
    NAMESPACE,
    NAME,
    ("HOSTNAME", false, |item| hostnames(item).join(",")),
    ("ADDRESSES", false, addresses),
    ("PORTS", false, |item| {
        let port = |port: &Value| match &port["targetPort"] {
            Value::Null => text(&port["port"]),
            target => format!("{}>{}", text(&port["port"]), text(target)),
        };
        each(&item.value["spec"]["ports"], port)
    }),
    ("SELECTOR", true, |item| pairs(&item.value["spec"]["selector"])),
    AGE,
];

const WORKLOAD_GROUP: &[Column] = &[
    NAMESPACE,
    NAME,
    ("SERVICE-ACCOUNT", false, |item| {
        let said = text(&item.value["spec"]["template"]["serviceAccount"]);
        if said.is_empty() { "default".to_owned() } else { said }
    }),
    ("PORTS", false, |item| pairs(&item.value["spec"]["template"]["ports"])),
    ("LABELS", false, |item| pairs(&item.value["spec"]["metadata"]["labels"])),
    ("HOSTS", false, |item| text(&item.value["status"]["hosts"])),
    ("PROCESSES", true, |item| pairs(&item.value["spec"]["metadata"]["annotations"])),
    AGE,
];

const WORKLOAD_ENTRY: &[Column] = &[
    NAMESPACE,
    NAME,
    ("ADDRESS", false, |item| text(&item.value["spec"]["address"])),
    ("PORTS", false, |item| pairs(&item.value["spec"]["ports"])),
    ("LABELS", false, |item| pairs(&item.value["spec"]["labels"])),
    ("SERVICE-ACCOUNT", true, |item| text(&item.value["spec"]["serviceAccount"])),
    AGE,
];

const SERVICE_ENTRY: &[Column] = &[
    NAMESPACE,
    NAME,
    ("HOSTS", false, |item| hostnames(item).join(",")),
    ("ADDRESSES", false, addresses),
    ("PORTS", false, |item| each(&item.value["spec"]["ports"], |port| text(&port["number"]))),
    ("ENDPOINTS", false, |item| each(&item.value["spec"]["endpoints"], |endpoint| text(&endpoint["address"]))),
    ("SELECTOR", true, |item| pairs(&item.value["spec"]["workloadSelector"]["labels"])),
    AGE,
];

const AUTHORIZATION_POLICY: &[Column] = &[
    NAMESPACE,
    NAME,
    ("ACTION", false, |item| {
        let said = text(&item.value["spec"]["action"]);
        if said.is_empty() { "ALLOW".to_owned() } else { said }
    }),
    ("RULES", false, |item| item.value["spec"]["rules"].as_array().map_or(0, Vec::len).to_string()),
    SELECTOR,
    AGE,
];

const PEER_AUTHENTICATION: &[Column] = &[
    NAMESPACE,
    NAME,
    ("MODE", false, |item| text(&item.value["spec"]["mtls"]["mode"])),
    ("PORTS", false, |item| {
        let ports = item.value["spec"]["portLevelMtls"].as_object().into_iter().flatten();
        ports.map(|(port, mode)| format!("{port}={}", text(&mode["mode"]))).collect::<Vec<_>>().join(",")
    }),
    SELECTOR,
    AGE,
];

const WORKLOAD: &[Column] = &[
    ("NAMESPACE", false, |item| text(&item.value["namespace"])),
    ("NAME", false, |item| text(&item.value["name"])),
    ("HOST", false, |item| text(&item.value["host"])),
    ("ADDRESSES", false, |item| strings(&item.value["addresses"]).join(",")),
    ("TUNNEL", false, |item| text(&item.value["tunnel"])),
    ("HEALTHY", false, |item| match (item.value["healthy"].as_bool(), text(&item.value["reason"])) {
        (Some(true), _) => "yes".to_owned(),
        (_, why) if why.is_empty() => "no".to_owned(),
        (_, why) => format!("no: {why}"),
    }),
    ("IDENTITY", false, |item| text(&item.value["identity"])),
    ("SERVICES", true, |item| strings(&item.value["services"]).join(",")),
    ("UID", true, |item| text(&item.value["uid"])),
];

const HOST: &[Column] = &[
    ("NAME", false, |item| text(&item.value["name"])),
    ("STATE", false, |item| text(&item.value["state"])),
    ("ADDRESSES", false, |item| strings(&item.value["addresses"]).join(",")),
    ("GROUPS", false, |item| strings(&item.value["groups"]).join(",")),
    ("INTERCEPTING", false, |item| yes(&item.value["intercepting"])),
    ("LAST-SEEN", false, |item| age(&item.value["last_seen_at"])),
    ("REVISION", true, |item| text(&item.value["revision"])),
    ("VERSION", true, |item| text(&item.value["version"])),
    ("CERTIFICATE-UNTIL", true, |item| text(&item.value["certificate_not_after"])),
    ("IDENTITY", true, |item| text(&item.value["identity"])),
    ("PROBLEM", false, |item| text(&item.value["problem"])),
];

const TOKEN: &[Column] = &[
    ("ID", false, |item| text(&item.value["id"])),
    ("GROUPS", false, |item| strings(&item.value["groups"]).join(",")),
    ("USES-LEFT", false, |item| text(&item.value["uses_left"])),
    ("NAMES", false, |item| text(&item.value["name_pattern"])),
    ("FROM", false, |item| strings(&item.value["cidrs"]).join(",")),
    ("EXPIRES", false, |item| text(&item.value["expires_at"])),
    ("CREATED-BY", true, |item| text(&item.value["created_by"])),
];

/// Those that the control plane gave each of its names, else those that were written.
fn addresses(item: &Item) -> String {
    let (spec, status) = (&item.value["spec"], &item.value["status"]);
    let mut given: Vec<String> = Vec::new();
    for address in status["addresses"].as_object().into_iter().flatten().flat_map(|(_, list)| strings(list)) {
        if !given.contains(&address) {
            given.push(address);
        }
    }
    let known = [given, strings(&spec["clusterIPs"]), strings(&spec["addresses"])];
    known.into_iter().find(|found| !found.is_empty()).unwrap_or_default().join(",")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn yes(value: &Value) -> String {
    if value.as_bool() == Some(true) { "yes" } else { "no" }.to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn each(value: &Value, show: impl Fn(&Value) -> String) -> String {
    value.as_array().into_iter().flatten().map(show).collect::<Vec<_>>().join(",")
}

fn pairs(value: &Value) -> String {
    let entries = value.as_object().into_iter().flatten();
    entries.map(|(key, value)| format!("{key}={}", text(value))).collect::<Vec<_>>().join(",")
}

/// How long ago, in the one or two units that matter.
fn age(value: &Value) -> String {
    let then = value.as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    then.map(|then| span((OffsetDateTime::now_utc() - then).whole_seconds())).unwrap_or_default()
}

fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7_200 => format!("{}m", s / 60),
        s @ 7_200..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_shows_its_name_and_addresses() {
        let info = api::resource::kind("svc").expect("a kind");
        let value = json!({
            "kind": "Service",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81}], "selector": {"app": "orders"}},
            "status": {"addresses": {"orders.shop.mesh": ["240.240.0.1", "fd74::1"]}},
        });
        let item = Item { what: What::Resource(info), value };
        let shown = anstream::adapter::strip_str(&tables(&[item], false)).to_string();
        let words: Vec<&str> = shown.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(words, ["shop", "orders", "orders.shop.mesh", "240.240.0.1,fd74::1", "80>8080,81", "-"]);
    }

    #[test]
    fn spans_are_short() {
        let cases = [(-5, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }
}
