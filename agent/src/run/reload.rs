//! Reads the configuration again (SIGHUP, `POST /reload`) and obeys what can change while running:
//! the log filter, interception, and `[[workload]]`. The rest is named as needing a restart.

use std::sync::{Arc, PoisonError};

use tracing::{info, warn};

use super::Agent;
use crate::config::Config;
use crate::workloads;

/// Sections that a running agent obeys at once.
const LIVE: [&str; 3] = ["log.filter", "interception.", "workload"];

impl Agent {
    pub(super) async fn reload_and_log(&mut self) {
        match self.reload().await {
            Ok(restart) if restart.is_empty() => info!("the configuration was read again"),
            Ok(restart) => {
                warn!(keys = restart.join(", "), "the configuration was read again; some of it needs a restart")
            }
            Err(problem) => warn!(error = problem, "the configuration is not obeyed, the earlier one stays"),
        }
    }

    /// Answers which keys changed that only a restart obeys.
    pub(super) async fn reload(&mut self) -> Result<Vec<String>, String> {
        let config = Config::load(&self.sources).map_err(|error| error.to_string())?;
        let before = std::mem::replace(&mut self.config, config);
        let changed = self
            .config
            .effective
            .iter()
            .filter(|now| before.effective.iter().any(|was| was.key == now.key && was.value != now.value));
        let live = |key: &str| LIVE.iter().any(|live| key.starts_with(live));
        let restart: Vec<String> = changed.map(|now| now.key.clone()).filter(|key| !live(key)).collect();
        if let Some(log) = &self.log
            && let Err(error) = log.set_filter(&self.config.log.filter)
        {
            warn!(error = %telemetry::Chain(&error), "the log filter stays as it was");
        }
        self.overrides.store(Arc::new(self.config.workloads.clone()));
        let snapshot = self.discovery.lock().unwrap_or_else(PoisonError::into_inner).snapshot().clone();
        // Before the first whole snapshot nothing is obeyed, so nothing is laid over it either.
        if self.received.load().host().is_some() {
            self.received.publish(workloads::overlay(&snapshot, &self.overrides.load()));
        }
        self.published.send_replace(Arc::new(self.config.clone()));
        self.parts.control.settings(self.config.interception.clone()).await;
        Ok(restart)
    }
}
