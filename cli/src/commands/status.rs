//! `tombolo status` where a control plane is named: how the mesh is.

use api::rest::ControlPlaneStatus;

use super::connect;
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::Output;

pub(crate) async fn run(connection: ConnectionArgs, output: Output) -> anyhow::Result<Exit> {
    let (client, connection) = connect(&connection)?;
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
