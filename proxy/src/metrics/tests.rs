//! The label set as a dashboard sees it.
use super::*;
use prometheus_client::encoding::text::encode;

#[test]
fn labels_are_istios_and_instances_of_one_group_share_them() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    for instance in ["one", "two"] {
        let workload = crate::testing::workload(&format!("tombolo/shop/orders/{instance}"), "shop", "orders", &[]);
        let source = Party { identity: workload.identity().ok(), workload: Some(Arc::new(workload)) };
        let labels = TcpLabels {
            reporter: Reporter::Source,
            source,
            destination: Party::default(),
            service: None,
            mutual_tls: true,
            flag: "-",
        };
        metrics.opened.get_or_create(&labels).inc();
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("encodes");
    let line = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).expect("counted");
    assert!(line.ends_with("} 2"), "{line}");
    for label in [
        r#"reporter="source""#,
        r#"source_workload="orders""#,
        r#"source_workload_namespace="shop""#,
        r#"source_principal="spiffe://td/ns/shop/sa/orders""#,
        r#"destination_workload="unknown""#,
        r#"destination_service="unknown""#,
        r#"request_protocol="tcp""#,
        r#"response_flags="-""#,
        r#"connection_security_policy="mutual_tls""#,
    ] {
        assert!(line.contains(label), "{label} not in {line}");
    }
}
