//! `tombolo status` where a control plane is named: how the mesh is.

use api::rest::ControlPlaneStatus;

use super::connect;
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  tombolo status                                   this host's agent
  tombolo status --server https://mesh.corp.example   the control plane";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
}

pub(crate) async fn run(args: Args, output: Output) -> anyhow::Result<Exit> {
    let (client, connection) = connect(&args.connection)?;
    let status: ControlPlaneStatus = client.get(&["status"]).await?;
    output.show(&status, || {
        let agents = format!("{} connected, {} at this revision", status.connected_agents, status.current_agents);
        let holds = format!("{} hosts, {} workloads, {} services", status.hosts, status.workloads, status.services);
        format!(
            "Control plane:  {} (version {})\nTrust domain:   {}\nRevision:       {}\nStore:          {}\n\
             Root:           {} until {}\nAgents:         {agents}\nMesh:           {holds}\n",
            connection.server,
            status.version,
            status.trust_domain,
            status.revision,
            status.store,
            status.ca_pin,
            status.ca_not_after,
        )
    })?;
    Ok(Exit::Ok)
}
