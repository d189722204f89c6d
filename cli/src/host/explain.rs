//! `tombolo why`.

use api::admin::Explanation;
use clap::Args;

use super::admin::encoded;
use super::{HostArgs, HostError};
use crate::exit::Exit;
use crate::output::Output;

pub(super) const EXAMPLES: &str = "\
Examples:
  tombolo why orders.shop.mesh                    from this host's only workload
  tombolo why 'shop/web->orders.shop.mesh:9090'   from one of its workloads
  tombolo why spiffe://corp.example/ns/shop/sa/web 10.0.0.7:8080
  tombolo why 10.0.0.9 orders.shop.mesh:80        what a host at that address may do

Exit code 4 when a policy refuses it, 1 when it goes nowhere for another reason.";

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// [SRC->]DST[:PORT], or SRC and DST[:PORT]. SRC is a workload (NAMESPACE/GROUP), an identity or an address
    #[arg(value_name = "SRC->DST", num_args = 1..=2, required = true)]
    question: Vec<String>,
    #[command(flatten)]
    host: HostArgs,
}

pub(super) fn run(args: WhyArgs, output: Output) -> Result<Exit, HostError> {
    let (src, dst) = match args.question.as_slice() {
        [src, dst] => (src.as_str(), dst.as_str()),
        [one] => one.split_once("->").unwrap_or(("", one)),
        _ => return Err(HostError::Usage("give SRC->DST[:PORT]".to_owned())),
    };
    let path = format!("/why?src={}&dst={}", encoded(src), encoded(dst));
    let explanation: Explanation = args.host.ask(async |client| client.get(&path).await)?;
    output.show(&explanation, || text(&explanation))?;
    Ok(match (explanation.allowed, &explanation.policy) {
        (true, _) => Exit::Ok,
        (false, Some(_)) => Exit::Refused,
        (false, None) => Exit::Failed,
    })
}

fn text(explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.question);
    for step in &explanation.steps {
        text.push_str(&format!("  {:<9} {}\n", step.step, step.answer));
    }
    text.push_str(&format!("{}\n", explanation.conclusion));
    text
}
