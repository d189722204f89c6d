//! The operator's commands on a real control plane: what they print, and what they refuse.

use anyhow::{Result, ensure};
use tests::Estate;

use crate::shop::SHOP;

#[test]
fn apply_get_diff_describe_and_delete_agree() -> Result<()> {
    let estate = Estate::start()?;
    let first = estate.apply(SHOP)?;
    ensure!(first.contains("service shop/orders created"), "{first}");
    let second = estate.apply(SHOP)?;
    ensure!(second.contains("service shop/orders unchanged"), "{second}");

    let table = estate.operate(&["get", "service", "-n", "shop"])?;
    ensure!(table.contains("orders") && table.contains("240.240."), "{table}");
    let json: serde_json::Value =
        serde_json::from_str(&estate.operate(&["get", "service", "-n", "shop", "-o", "json"])?)?;
    ensure!(json["items"][0]["metadata"]["name"] == "orders", "{json}");

    let yaml = estate.operate(&["get", "authorizationpolicy", "no-web-on-admin", "-n", "shop", "-o", "yaml"])?;
    let unchanged = estate.apply(&yaml)?;
    ensure!(unchanged.contains("unchanged"), "what get prints, apply takes: {unchanged}");

    let file = estate.folder().join("changed.yaml");
    std::fs::write(&file, SHOP.replace("action: DENY", "action: ALLOW"))?;
    let diff = estate.operator(&["diff", "-f", &file.display().to_string()])?;
    ensure!(
        diff.code == 1 && diff.stdout.contains("-  action: DENY") && diff.stdout.contains("+  action: ALLOW"),
        "{diff:?}"
    );

    let described = estate.operate(&["describe", "service", "orders", "-n", "shop"])?;
    ensure!(described.contains("orders.shop.mesh"), "{described}");
    let deleted = estate.operate(&["delete", "service", "orders", "-n", "shop"])?;
    ensure!(deleted.contains("service shop/orders deleted"), "{deleted}");
    let gone = estate.operator(&["get", "service", "orders", "-n", "shop"])?;
    ensure!(gone.code == 1 && gone.stderr.contains("shop/orders"), "{gone:?}");
    Ok(())
}

#[test]
fn bad_input_is_refused_whole_and_by_name() -> Result<()> {
    let estate = Estate::start()?;
    estate.apply(SHOP)?;
    let service = |name: &str, rest: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{selector: {{app: orders}}, ports: [{{port: 80, targetPort: 8080}}]{rest}}}\n"
        )
    };
    let cases = [
        ("spec: [", "line"),
        ("kind: Service", "apiVersion"),
        (&service("a", ", selectr: {}"), "selectr"),
        (&service("a", ", type: NodePort"), "not supported"),
        (&service("UPPER", ""), "UPPER"),
        ("{apiVersion: v9, kind: Teapot, metadata: {name: a, namespace: b}}", "Teapot"),
        (
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: a, namespace: b}, \
              spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}}",
            "methods",
        ),
    ];
    for (yaml, named) in cases {
        let file = estate.folder().join("bad.yaml");
        std::fs::write(&file, format!("{}---\n{yaml}\n", service("good", "")))?;
        let output = estate.operator(&["apply", "-f", &file.display().to_string()])?;
        ensure!(
            output.code == 1 && output.stderr.contains(named),
            "{yaml:?} must be refused naming {named:?}: {output:?}"
        );
        let listed = estate.operate(&["get", "service", "-n", "shop"])?;
        ensure!(!listed.contains("good"), "half of a bad apply was kept: {listed}");
    }

    let vip = |name: &str| service(name, ", clusterIP: 240.240.7.7");
    estate.apply(&vip("first"))?;
    let file = estate.folder().join("overlap.yaml");
    std::fs::write(&file, vip("second"))?;
    let output = estate.operator(&["apply", "-f", &file.display().to_string()])?;
    ensure!(!output.ok() && output.stderr.contains("shop/first"), "overlapping VIPs: {output:?}");

    std::fs::write(&file, service("lonely", "").replace("app: orders", "app: nobody"))?;
    let output = estate.operator(&["apply", "-f", &file.display().to_string()])?;
    ensure!(
        output.ok() && output.stderr.contains("matches no WorkloadGroup"),
        "a service without workloads: {output:?}"
    );
    Ok(())
}

#[test]
fn a_wrong_token_ca_or_address_is_told_apart() -> Result<()> {
    let estate = Estate::start()?;
    let mut command = estate.operator_command(&["get", "service"])?;
    command.env("TOMBOLO_TOKEN", "wrong");
    let output = tests::netns::finish(command, std::time::Duration::from_secs(20))?;
    ensure!(output.code == 1 && output.stderr.contains("token"), "{output:?}");

    let other = Estate::start()?;
    let mut command = estate.operator_command(&["get", "service"])?;
    command.env("TOMBOLO_CA", other.data_dir().join("ca.pem"));
    let output = tests::netns::finish(command, std::time::Duration::from_secs(20))?;
    ensure!(output.code == 1 && output.stderr.contains("certificate"), "{output:?}");

    let mut command = estate.operator_command(&["get", "service"])?;
    command.env("TOMBOLO_URL", "https://10.88.0.1:1");
    let output = tests::netns::finish(command, std::time::Duration::from_secs(20))?;
    ensure!(output.code == 1 && output.stderr.contains("10.88.0.1:1"), "{output:?}");

    let usage = estate.operator(&["get"])?;
    ensure!(usage.code == 2, "{usage:?}");
    Ok(())
}
