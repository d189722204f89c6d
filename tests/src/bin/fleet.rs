//! `fleet ADDRESS TOKEN AGENTS CHANGES TOMBOLO FILE`: joins that many simulated agents and measures,
//! for that many changes, how long each agent takes to obey, counted from before `tombolo apply` is
//! started. Prints one JSON line. `tombolo` finds its control plane by this program's environment.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::fleet::{self, Seen};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |at: usize| arguments.get(at).map(String::as_str).context("usage: see the head of fleet.rs");
    let (address, token) = (argument(1)?, argument(2)?);
    let (n_agents, n_changes): (usize, usize) = (argument(3)?.parse()?, argument(4)?.parse()?);
    let (tombolo, file) = (argument(5)?, argument(6)?);
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a crypto provider is installed already");
    }

    let mut agents = Vec::new();
    for n in 0..n_agents {
        agents.push(fleet::start(address, token, &format!("fleet-{n}")).await?);
    }
    for (seen, _) in &mut agents {
        let ready = seen.wait_for(|snapshot| snapshot.host().is_some() && snapshot.len_workloads() >= n_agents);
        tokio::time::timeout(Duration::from_secs(60), ready).await.context("an agent never saw the whole fleet")??;
    }

    let mut delays_us = Vec::new();
    for n in 0..n_changes {
        let waiting: Vec<_> = agents.iter().map(|(seen, _)| tokio::spawn(obeyed(seen.clone(), n))).collect();
        let began = Instant::now();
        apply(tombolo, file, n).await?;
        for wait in waiting {
            let at = wait.await?.with_context(|| format!("change {n}"))?;
            delays_us.push(u64::try_from(at.duration_since(began).as_micros())?);
        }
    }
    delays_us.sort_unstable();
    let percentile = |q: f64| delays_us[((delays_us.len() - 1) as f64 * q) as usize] / 1000;
    let (p50, p99, max) = (percentile(0.5), percentile(0.99), percentile(1.0));
    println!(r#"{{"agents":{n_agents},"changes":{n_changes},"p50_ms":{p50},"p99_ms":{p99},"max_ms":{max}}}"#);
    Ok(())
}

/// When this agent's snapshot holds the n-th change.
async fn obeyed(mut seen: Seen, n: usize) -> Result<Instant> {
    let key = format!("shop/change-{n}");
    let holds = seen.wait_for(|snapshot| snapshot.policy(&key).is_some());
    tokio::time::timeout(Duration::from_secs(30), holds).await.context("not within 30 s")??;
    Ok(Instant::now())
}

async fn apply(tombolo: &str, file: &str, n: usize) -> Result<()> {
    let policy = format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: change-{n}, namespace: shop}}, \
         spec: {{action: DENY, rules: [{{to: [{{operation: {{ports: [\"{}\"]}}}}]}}]}}}}",
        n + 1
    );
    std::fs::write(file, policy)?;
    let mut command = tokio::process::Command::new(tombolo);
    let status = command.args(["apply", "-f", file]).stdout(Stdio::null()).status().await?;
    ensure!(status.success(), "tombolo apply ended with {status}");
    Ok(())
}
