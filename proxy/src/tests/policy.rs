//! Who may talk to whom, at the start of a connection and while it is open.
use super::mesh::*;
use crate::config::Config;
use crate::inbound;
use crate::report::Observers;
use api::policy::{Action, AuthorizationPolicy, Clause, Match, Rule, Scope, ServiceAccountMatch};
use api::snapshot::Change;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

fn policy(name: &str, action: Action, accounts: &[&str]) -> Change {
    let account = |account: &&str| ServiceAccountMatch { namespace: "shop".into(), service_account: (*account).into() };
    let from = Match { service_accounts: accounts.iter().map(account).collect(), ..Match::default() };
    Change::Policy(AuthorizationPolicy {
        name: name.into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![from] }] }],
        dry_run: false,
    })
}

#[tokio::test]
async fn a_denied_identity_is_refused_and_the_log_names_the_policy() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        echo(app);
        mesh.b.publish(vec![policy("only-cron", Action::Allow, &["cron"])]);
        let mut client = mesh.dial().await;
        assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
        let line = logged(&[&mesh.app.to_string(), "inbound connection refused"]).await;
        assert_eq!((&line["policy"], &line["flag"]), (&"shop/only-cron".into(), &"DENY".into()));
        assert_eq!(line["error"], "no rule of shop/only-cron allows it");
        assert_eq!(line["src.identity"], id("web").to_string());
        let line =
            logged(&[&client.local_addr().expect("an address").to_string(), "outbound connection refused"]).await;
        assert_eq!(line["flag"], "DENY");
        let mut cron = mesh.a.dial(mesh.vip, Some(CRON)).await;
        assert_eq!(ask(&mut cron, "hello").await.expect("allowed"), "hello");
        drop(cron);
        let line = logged(&[&mesh.app.to_string(), "inbound connection closed", "sa/cron"]).await;
        assert_eq!(line["policy"], "shop/only-cron");
    }
}

#[tokio::test]
async fn a_new_policy_closes_what_it_forbids_and_nothing_else() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        echo(app);
        let mut web = mesh.dial().await;
        let mut cron = mesh.a.dial(mesh.vip, Some(CRON)).await;
        for client in [&mut web, &mut cron] {
            assert_eq!(ask(client, "before").await.expect("allowed"), "before");
        }
        mesh.b.publish(vec![policy("deny-web", Action::Deny, &["web"])]);
        assert_eq!(refused(&mut web).await, ErrorKind::ConnectionReset);
        assert_eq!(ask(&mut cron, "after").await.expect("still allowed"), "after");
        let line = logged(&[&mesh.app.to_string(), "inbound connection closed", "POLICY_CHANGED"]).await;
        assert_eq!(line["error"], "closed due to policy change: denied by shop/deny-web");
        assert_eq!(mesh.b.metric("tombolo_connections_closed_by_policy_total", &[]), 1.0);
        mesh.b.publish(vec![Change::PolicyRemoved("shop/deny-web".into())]);
        let mut again = mesh.dial().await;
        assert_eq!(ask(&mut again, "again").await.expect("allowed again"), "again");
    }
}

#[tokio::test]
async fn an_audit_only_tells() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    mesh.b.publish(vec![policy("watch-web-here", Action::Audit, &["web"])]);
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "hello").await.expect("allowed"), "hello");
    let line = logged(&["shop/watch-web-here", "only logs"]).await;
    assert_eq!(line["src.identity"], id("web").to_string());
}

/// Brings a plaintext connection to the code behind the TPROXY listener: it is accepted at the
/// application's own address, which then is free for the application.
async fn plaintext(mesh: &Mesh, app: TcpListener, transparent: bool) -> (TcpStream, TcpListener) {
    let address = app.local_addr().expect("bound");
    let client = tokio::net::TcpSocket::new_v4().expect("a socket");
    client.bind("127.0.0.21:0".parse().expect("an address")).expect("loopback has free ports");
    let client = client.connect(address).await.expect("it listens");
    let (accepted, from) = app.accept().await.expect("accepts");
    drop(app);
    let app = tokio::net::TcpSocket::new_v4().expect("a socket");
    app.set_reuseaddr(true).expect("sets");
    app.bind(address).expect("only a connection uses it");
    let app = app.listen(16).expect("listens");
    let shared = inbound::Shared::new(
        Config::default(),
        mesh.b.view.clone(),
        mesh.b.credentials.clone(),
        Default::default(),
        Observers::default(),
        [15008].into(),
        Arc::new(AtomicBool::new(transparent)),
    );
    tokio::spawn(inbound::plaintext::serve(Arc::new(shared), accepted, from));
    (client, app)
}

#[tokio::test]
async fn observed_plaintext_is_judged_as_nobody() {
    let listener = app().await;
    let mesh = Mesh::start(&listener).await;
    let address = mesh.app.to_string();
    let (mut client, listener) = plaintext(&mesh, listener, true).await;
    let (mut server, _) = within("the connection", listener.accept()).await.expect("accepts");
    tokio::io::AsyncWriteExt::write_all(&mut server, b"hi").await.expect("sends");
    let mut text = [0; 2];
    within("bytes", client.read_exact(&mut text)).await.expect("reads");
    assert_eq!(&text, b"hi");
    mesh.b.publish(vec![policy("only-web", Action::Allow, &["web"])]);
    let (mut client, listener) = plaintext(&mesh, listener, true).await;
    assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
    let line = logged(&[&address, "inbound connection refused", "shop/only-web"]).await;
    assert_eq!((&line["flag"], &line["protocol"]), (&"DENY".into(), &"tcp".into()));
    let (mut client, _) = plaintext(&mesh, listener, false).await;
    assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
    logged(&[&address, "interception is off"]).await;
}

#[tokio::test]
async fn the_plaintext_port_itself_is_nobodys_destination() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    mesh.b.handle.set_transparent(true);
    let Some(own) = mesh.b.handle.addresses().plaintext.first().copied() else {
        return eprintln!("skipped: transparent sockets need CAP_NET_ADMIN");
    };
    let mut client = TcpStream::connect(own).await.expect("it listens");
    assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
    let line = logged(&[&own.to_string(), "would be a loop"]).await;
    assert_eq!(line["flag"], "LOOP");
}
