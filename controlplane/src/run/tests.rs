//! Tests of `run`, the file beside this folder.

use super::*;
use crate::testing::{Plane, postgres, settings, sqlite};

async fn refused(config: &Config) -> StartError {
    match ControlPlane::start(config).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn what_hinders_a_start_is_named_with_its_cure() {
    let database = sqlite().await;
    let directory = database.directory.path();
    let plane = Plane::start(&database.store_url, directory).await;
    let config = settings(&database.store_url, directory);

    let taken: SocketAddr = plane.url.replace("https://", "").parse().expect("an address");
    let error = refused(&Config { api_listen: taken, ..config.clone() }).await;
    assert!(matches!(error, StartError::Listen { flag: "--api-listen", .. }), "{error}");
    assert!(error.hint().contains("another program listens there"), "{}", error.hint());
    let error =
        refused(&Config { grpc_listen: "192.0.2.1:15012".parse().expect("an address"), ..config.clone() }).await;
    assert!(error.hint().contains("this machine has no such address"), "{}", error.hint());

    let error = refused(&Config { data_dir: "/dev/null/here".into(), ..config.clone() }).await;
    assert_eq!(error.to_string(), "cannot use the data directory /dev/null/here");
    let error = refused(&Config { trust_domain: "other.example".parse().expect("valid"), ..config.clone() }).await;
    assert!(error.hint().contains("start with --trust-domain corp.example"), "{}", error.hint());
    let nobody = "postgres://tombolo@127.0.0.1:1/mesh".parse().expect("valid");
    let error = refused(&Config { store: nobody, ..config.clone() }).await;
    assert_eq!(error.to_string(), "cannot use the store postgres://tombolo@127.0.0.1:1/mesh");
    plane.stop().await;
    // Nothing of a refused start is in the way of the next.
    Plane::start(&database.store_url, directory).await.stop().await;
}

#[tokio::test]
async fn a_replica_with_an_authority_of_its_own_is_refused_before_it_makes_one() {
    let Some(database) = postgres().await else { return };
    let plane = Plane::start(&database.store_url, database.directory.path()).await;
    let other = tempfile::tempdir().expect("a directory");
    let error = refused(&settings(&database.store_url, other.path())).await;
    assert!(matches!(error, StartError::OtherAuthority { .. }), "{error}");
    assert!(error.hint().contains("copy ca.pem and ca/"), "{}", error.hint());
    assert!(!other.path().join("ca").exists());
    plane.stop().await;
}

#[test]
fn the_first_name_is_the_one_hosts_are_told() {
    let rows = [
        (vec!["mesh.corp.example", "10.0.0.1"], "https://mesh.corp.example:15012"),
        (vec!["10.0.0.1"], "https://10.0.0.1:15012"),
        (vec!["fd00::1"], "https://[fd00::1]:15012"),
        (vec![], "https://localhost:15012"),
    ];
    for (names, expected) in rows {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        assert_eq!(url(&names, 15012), expected);
    }
}
