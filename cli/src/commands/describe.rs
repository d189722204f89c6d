//! `tombolo describe`: one object in words, with the workloads that belong to it.

use anyhow::bail;
use api::rest::{WorkloadList, WorkloadView};
use serde_json::{Value, json};

use super::connect;
use super::get::{Item, Question};
use crate::client::Client;
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::{Output, Table, error, printable, yaml};
use crate::views::{self, What};

const EXAMPLES: &str = "\
Examples:
  tombolo describe service orders -n shop
  tombolo describe host web-1
  tombolo describe workload orders-vm3 -n shop";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Its kind
    #[arg(value_name = "KIND", value_parser = views::what)]
    what: What,
    /// Its name
    name: String,
    /// Its namespace; without it the context's, else `default`
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) async fn run(args: Args, output: Output) -> anyhow::Result<Exit> {
    if args.what == What::All {
        error("describe takes one kind, not all");
        return Ok(Exit::Usage);
    }
    let (client, connection) = connect(&args.connection)?;
    let namespace = args.namespace.unwrap_or(connection.namespace);
    let question = Question { what: args.what, name: Some(args.name), namespace: Some(namespace) };
    let mut found = question.ask(&client).await?;
    let Some(item) = found.pop() else { bail!("there is no such {}", args.what.singular()) };
    let workloads = related(&client, &item).await?;
    let value = match &workloads {
        Some(workloads) => json!({"object": item.value, "workloads": workloads}),
        None => json!({"object": item.value}),
    };
    let text = describe(&item, workloads.as_deref())?;
    output.show(&value, || text)?;
    Ok(Exit::Ok)
}

/// The same for a host, as `tombolo host describe` asks for it.
pub(super) async fn host(name: String, connection: ConnectionArgs, output: Output) -> anyhow::Result<Exit> {
    run(Args { what: What::Host, name, namespace: None, connection }, output).await
}

/// The workloads that serve a service, were made of a group, or run on a host.
async fn related(client: &Client, item: &Item) -> anyhow::Result<Option<Vec<WorkloadView>>> {
    let hostnames = views::hostnames(item);
    let of = |key: &str| item.value["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (of("namespace"), of("name"));
    let belongs: Box<dyn Fn(&WorkloadView) -> bool> = match item.what {
        What::Host => {
            let host = item.value["name"].as_str().unwrap_or_default().to_owned();
            Box::new(move |workload| workload.host == host)
        }
        What::Resource(info) if info.kind == "WorkloadGroup" => {
            Box::new(move |workload| workload.namespace == namespace && workload.group == name)
        }
        What::Resource(_) if !hostnames.is_empty() => Box::new(move |workload| {
            workload.services.iter().any(|service| hostnames.contains(&service.as_str().into()))
        }),
        _ => return Ok(None),
    };
    let list: WorkloadList = client.get(&["workloads"]).await?;
    Ok(Some(list.items.into_iter().filter(|workload| belongs(workload)).collect()))
}

fn describe(item: &Item, workloads: Option<&[WorkloadView]>) -> anyhow::Result<String> {
    let facts = views::facts(item);
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let mut text: String = facts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{:width$}  {}\n", format!("{name}:"), printable(value)))
        .collect();
    if let Value::Object(_) = item.value["spec"] {
        let spec = yaml(&item.value["spec"])?;
        text += "Spec:\n";
        text.extend(spec.lines().map(|line| format!("  {line}\n")));
    }
    match workloads {
        None => {}
        Some([]) => text += "Workloads: none\n",
        Some(workloads) => {
            let mut table = Table::new(["NAMESPACE", "NAME", "HOST", "ADDRESSES", "HEALTHY", "IDENTITY"]);
            for workload in workloads {
                let healthy = match (workload.healthy, workload.reason.as_str()) {
                    (true, _) => "yes".to_owned(),
                    (false, "") => "no".to_owned(),
                    (false, why) => format!("no: {why}"),
                };
                table.row([
                    workload.namespace.clone(),
                    workload.name.clone(),
                    workload.host.clone(),
                    workload.addresses.join(","),
                    healthy,
                    workload.identity.clone(),
                ]);
            }
            text += "Workloads:\n";
            text.extend(table.render().lines().map(|line| format!("  {line}\n")));
        }
    }
    Ok(text)
}
