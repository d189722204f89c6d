//! Checks of name resolution: whom the host asks, and whether anybody answers.

use std::net::SocketAddr;

use api::admin::{Check, CheckOutcome};

use super::{check, ok};
use crate::config::Config;
use crate::intercept_control::self_test::resolver_answers;
use crate::resolv::{Follower, ResolvFiles, Sources};

pub(super) async fn resolvers(config: &Config) -> Check {
    let name = "names";
    let conf = config.dns.resolv_conf.clone();
    let files = ResolvFiles { conf: conf.clone(), ..ResolvFiles::default() };
    let sources = Sources { files, fixed: config.dns.upstreams.clone(), own: config.dns.listen.clone() };
    let follower = Follower::spawn(sources);
    let resolvers = follower.resolvers().borrow().clone();
    let asked: Vec<SocketAddr> =
        if config.dns.upstreams.is_empty() { resolvers.configured.clone() } else { config.dns.upstreams.clone() };
    if asked.is_empty() {
        let cure = format!("write a `nameserver` line into {}", conf.display());
        return check(name, CheckOutcome::Fail, format!("{} names no resolver", conf.display()), cure);
    }
    let (mut answering, mut silent) = (vec![], vec![]);
    for resolver in asked {
        match resolver_answers(resolver).await {
            Ok(_) => answering.push(resolver.to_string()),
            Err(why) => silent.push(why),
        }
    }
    let kind = if resolvers.is_resolved_stub() { "systemd-resolved, " } else { "" };
    match (answering.is_empty(), silent.is_empty()) {
        (false, true) => ok(name, format!("{kind}{} answers", answering.join(", "))),
        (false, false) => check(
            name,
            CheckOutcome::Warn,
            format!("{kind}{} answers; {}", answering.join(", "), silent.join("; ")),
            "take the resolvers that do not answer out of resolv.conf",
        ),
        (true, _) => {
            let cure = "let this host reach its resolvers (firewall?), or name others in [dns] upstreams";
            check(name, CheckOutcome::Fail, silent.join("; "), cure)
        }
    }
}
