//! `docs/metrics.md` is made from what both programs answer to a scrape.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use tests::document::workspace;

use crate::shop;

#[test]
fn the_list_of_metrics_is_fresh() -> Result<()> {
    let shop = shop::open()?;
    // What is counted only when it happens: a refusal, a name of somebody else.
    ensure!(!shop.web.curl("http://orders.shop.mesh:9090/")?.ok(), "the policy of the demonstration refuses this");
    shop.web.namespace().run("dig", &["+time=2", "+tries=1", "@127.0.0.1", "-p", "15053", "outside.example"])?;
    let mut agent: Vec<String> = RARE.iter().map(|(name, kind, help)| row(name, kind, help)).collect();
    for host in [&shop.web, &shop.orders] {
        let scrape = host.curl("http://127.0.0.1:15020/metrics")?;
        ensure!(scrape.ok(), "{scrape:?}");
        agent.extend(families(&scrape.stdout)?);
    }
    let url = format!("https://{}:15014/metrics", tests::estate::CONTROL_PLANE);
    let control_plane = shop.estate.switch().run("curl", &["-sSk", "--fail", &url])?;
    ensure!(control_plane.ok(), "{control_plane:?}");

    let mut made = INTRODUCTION.to_owned();
    for (title, mut rows) in [("The agent", agent), ("The control plane", families(&control_plane.stdout)?)] {
        rows.sort();
        rows.dedup();
        write!(made, "\n## {title}\n\n| metric | kind | |\n|---|---|---|\n{}", rows.concat())?;
    }
    let path = workspace().join("docs/metrics.md");
    if std::env::var_os("UPDATE_DOCUMENTS").is_some() {
        std::fs::write(&path, &made)?;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let refresh = "UPDATE_DOCUMENTS=1 cargo test -p tests --test e2e list_of_metrics";
    ensure!(kept == made, "docs/metrics.md is stale, make it with: {refresh}\n{made}");
    every_definition_is_in(&made)
}

/// A family is missing from a scrape until it has counted something, so the code is asked too.
fn every_definition_is_in(document: &str) -> Result<()> {
    for file in ["proxy/src/metrics.rs", "proxy/src/dns/metrics.rs"] {
        let text = std::fs::read_to_string(workspace().join(file))?;
        for name in text.split('"').skip(1).step_by(2) {
            let is_metric = name.starts_with("istio_") || name.starts_with("tombolo_");
            ensure!(!is_metric || document.contains(&format!("`{name}")), "{name} of {file} is not in docs/metrics.md");
        }
        let said = RARE.iter().filter(|(name, ..)| text.contains(&format!("\"{name}\"")));
        for (name, _, help) in said {
            ensure!(text.contains(help), "{file} says something else about {name} than {help:?}");
        }
    }
    Ok(())
}

/// One row a family (OpenMetrics: HELP and TYPE before the samples).
fn families(scrape: &str) -> Result<Vec<String>> {
    let helps = scrape.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let rows = helps.map(|line| {
        let (name, help) = line.split_once(' ').with_context(|| format!("{line} has no text"))?;
        let kind = scrape.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let kind = kind.with_context(|| format!("{name} has no type"))?;
        ensure!(!help.trim_end_matches('.').is_empty(), "{name} does not say what it counts");
        Ok(row(name, kind, help))
    });
    rows.collect()
}

fn row(name: &str, kind: &str, help: &str) -> String {
    let end = match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    format!("| `{name}{end}` | {kind} | {} |\n", help.trim_end_matches('.'))
}

/// What no test makes happen, as the code says it.
const RARE: &[(&str, &str, &str)] = &[
    (
        "tombolo_accept_errors",
        "counter",
        "Connections that could not be accepted, by listener (too many open files, mostly)",
    ),
    ("istio_dns_upstream_failures", "counter", "Forwarded DNS questions that no resolver answered"),
    (
        "tombolo_dns_dropped",
        "counter",
        "DNS messages not worked on: too many at once, not a question, or our own come back",
    ),
];
const INTRODUCTION: &str = "# Metrics

Made from the programs by a test; do not edit. OpenMetrics text, for Prometheus and every collector that reads
it: the agent at `http://HOST:15020/metrics`, the control plane at `https://HOST:15014/metrics`.

The `istio_tcp_*` families are Istio's, with Istio's labels (`reporter`, `source_workload`,
`destination_service`, `connection_security_policy`, `response_flags` …), so that its dashboards work.
";
