//! Check mode tells the truth, the second run changes nothing, and no token is ever shown.

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

#[test]
fn what_check_mode_foretells_is_what_happens_and_then_nothing_does() -> Result<()> {
    let lab = Lab::open()?;
    let foretold = lab.play_ok("site --check --diff")?;
    ensure!(!lab.web.path("/usr/bin/tombolo")?.exists(), "check mode installed something");
    // As loud as operators make it when they look for a mistake.
    let real = lab.play_ok("site --diff -vvv")?;
    ensure!(foretold.changed() == real.changed(), "foretold {:#?}\nhappened {:#?}", foretold.changed(), real.changed());
    for expected in ["Join the mesh on web", "Start the control plane on cp1", "Make the database on cp1"] {
        ensure!(real.changed().iter().any(|one| one.ends_with(expected)), "not {expected}: {:#?}", real.changed());
    }
    for secret in ["tmb_", &admin_token(&lab)?, &postgres_password(&lab)?] {
        ensure!(!real.said.contains(secret), "{secret} was shown");
    }
    let store = lab.cp1.run_ok("sh", &["-c", &format!("{OPERATOR} tombolo status -o json")])?;
    ensure!(store.contains("\"postgres\""), "the control plane does not use Postgres: {store}");
    for host in [&lab.orders, &lab.web] {
        let status = host.status()?;
        ensure!(status["ready"] == true && status["interception"]["state"] == "off", "{status}");
    }

    let again = lab.play_ok("site")?;
    ensure!(again.changed().is_empty(), "the second run changes {:#?}", again.changed());

    // A change to what is there is foretold with its lines, and a mistake in it reaches no host.
    lab.write_inventory("    agent_config: {log: {filter: debug}, dns: {timeout: 3s}}\n    agent_intercept: true\n")?;
    let foretold = lab.play_ok("site --check --diff")?;
    ensure!(foretold.said.contains("+filter = \"debug\""), "{}", foretold.said);
    ensure!(foretold.said.contains("+table inet tombolo"), "the agent's plan is not shown: {}", foretold.said);
    let real = lab.play_ok("site --diff")?;
    ensure!(foretold.changed() == real.changed(), "foretold {:#?}\nhappened {:#?}", foretold.changed(), real.changed());
    lab.ensure_served()?;
    ensure!(lab.web.status()?["interception"]["state"] == "on", "{}", lab.web.status()?);
    let again = lab.play_ok("site")?;
    ensure!(again.changed().is_empty(), "{:#?}", again.changed());

    lab.write_inventory("    agent_config: {dns: {timeot: 3s}}\n")?;
    let refused = lab.play("site")?;
    ensure!(!refused.ok() && refused.said.contains("timeot"), "{}", refused.said);
    let kept = lab.web.run_ok("cat", &["/etc/tombolo/agent.d/50-ansible.toml"])?;
    ensure!(kept.contains("timeout = \"3s\""), "{kept}");
    lab.ensure_served()
}

fn admin_token(lab: &Lab) -> Result<String> {
    let token = lab.cp1.run_ok("cat", &["/var/lib/tombolo-controlplane/admin.token"])?;
    Ok(token.trim().to_owned())
}

fn postgres_password(lab: &Lab) -> Result<String> {
    let text = std::fs::read_to_string(lab.path("credentials/postgres")).context("no password was made")?;
    Ok(text.split_whitespace().next().context("it is empty")?.to_owned())
}

/// The operator's environment on the control plane.
pub const OPERATOR: &str = "TOMBOLO_URL=https://127.0.0.1:15014 TOMBOLO_CA=/var/lib/tombolo-controlplane/ca.pem \
                            TOMBOLO_TOKEN_FILE=/var/lib/tombolo-controlplane/admin.token";
