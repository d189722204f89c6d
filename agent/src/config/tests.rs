//! Tables for the layers: which one counts, what is refused, and that all mistakes are told at once.
use super::*;

struct Etc {
    folder: tempfile::TempDir,
}

impl Etc {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("agent.d")).expect("a fresh folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a fresh folder");
        }
        Self { folder }
    }

    fn load(&self, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&Sources {
            file: Some(self.folder.path().join("agent.toml")),
            environment: Some(owned(environment)),
            flags: owned(flags),
        })
    }
}

#[test]
fn the_shipped_file_is_the_defaults() {
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/etc/agent.toml");
    let text = std::fs::read_to_string(&shipped).expect("packaging/etc/agent.toml is in the tree");
    let parsed: raw::RawConfig = toml::from_str(&text).expect("it parses, without unknown keys");
    assert_eq!(parsed, raw::RawConfig::default());
    for line in serde_json::to_value(&parsed).expect("plain data").as_object().expect("sections").keys() {
        assert!(text.contains(line.as_str()), "{line} is not documented in the shipped file");
    }
}

#[test]
fn defaults_are_without_mistakes() {
    let mut mistakes = Vec::new();
    check::check(&raw::RawConfig::default(), &[], &mut mistakes);
    assert_eq!(mistakes, []);
}

#[test]
fn each_layer_stands_over_the_ones_below() {
    let etc = Etc::new(&[
        ("agent.toml", "[drain]\ndeadline = \"1s\"\n[log]\nfilter = \"warn\"\n[dns]\ntimeout = \"1s\""),
        ("agent.d/10-first.toml", "[drain]\ndeadline = \"2s\"\n[log]\nfilter = \"debug\""),
        ("agent.d/20-second.toml", "[drain]\ndeadline = \"3s\""),
        ("agent.d/ignored.conf", "nonsense"),
    ]);
    let check = |environment: &[(&str, &str)], flags: &[(&str, &str)], seconds: u64, layer: &str| {
        let config = etc.load(environment, flags).expect("no mistakes");
        assert_eq!(config.drain_deadline, Duration::from_secs(seconds));
        let from = config.effective.iter().find(|one| one.key == "drain.deadline").expect("every key is there");
        assert!(from.layer.ends_with(layer), "{} is not {layer}", from.layer);
        assert_eq!(config.log.filter, "debug");
        assert_eq!(config.dns.timeout, Duration::from_secs(1));
    };
    check(&[], &[], 3, "20-second.toml");
    check(&[("TOMBOLO__DRAIN__DEADLINE", "4s")], &[], 4, "environment");
    check(&[("TOMBOLO__DRAIN__DEADLINE", "4s")], &[("drain.deadline", "5s")], 5, "flags");
}

#[test]
fn text_layers_give_numbers_booleans_and_lists() {
    let etc = Etc::new(&[("agent.toml", "")]);
    let config = etc
        .load(
            &[
                ("TOMBOLO__INTERCEPTION__SOURCE_PRESERVATION", "false"),
                ("TOMBOLO__INTERCEPTION__EXCLUDE__PORTS", "22, 5432"),
                ("TOMBOLO__INTERCEPTION__EXCLUDE__CIDRS", "10.9.0.0/16,192.0.2.7"),
                ("TOMBOLO__OUTBOUND__MAX_ENDPOINTS_TRIED", "7"),
                ("TOMBOLO__OUTBOUND__TUNNEL", "tombolo/1"),
                ("TOMBOLO_URL", "of another program"),
            ],
            &[("inbound.idle_timeout", "1h")],
        )
        .expect("no mistakes");
    assert!(!config.interception.source_preservation);
    assert_eq!(config.interception.exclude.ports, [22, 5432]);
    assert_eq!(config.interception.exclude.cidrs.len(), 2);
    assert_eq!(config.outbound.max_endpoints_tried, 7);
    assert_eq!(config.outbound.tunnel, proxy::config::Tunnel::Flow);
    assert_eq!(config.outbound.idle_timeout, None);
    assert_eq!(config.inbound.idle_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn every_mistake_is_told_at_once_with_its_layer() {
    let etc = Etc::new(&[
        ("agent.toml", "[drain]\ndeadlin = \"1s\"\n[paths]\nstate_dir = \"here\"\n[nonsense]\nx = 1"),
        ("agent.d/bad.toml", "[drain\n"),
        ("agent.d/worse.toml", "[outbound]\nlisten = [\"0.0.0.0:15001\"]\n[log]\nformat = 7\nfilter = [1]"),
    ]);
    let error = etc
        .load(
            &[
                ("TOMBOLO__INTERCEPTION__CAPTURE", "everything"),
                ("TOMBOLO__OUTBOUND__TUNNEL", "quic"),
                ("TOMBOLO__HEALTH__EXEC", "perhaps"),
            ],
            &[("control_plane.url", "http://cp"), ("interception.exclude", "x"), ("dns.timeout", "soon")],
        )
        .expect_err("mistakes everywhere");
    let text = error.to_string();
    let expected = [
        ("agent.toml", "drain.deadlin: there is no such key; [drain] has deadline"),
        ("agent.toml", "paths.state_dir: \"here\" is not an absolute path"),
        ("agent.toml", "nonsense.x: there is no such section"),
        ("bad.toml", "TOML parse error"),
        ("worse.toml", "outbound.listen: 0.0.0.0:15001 is not a loopback address"),
        ("worse.toml", "log.filter: invalid type"),
        ("environment", "interception.capture: \"everything\" is not one of mesh, all"),
        ("environment", "outbound.tunnel: \"quic\" is not one of auto, hbone, tombolo/1"),
        ("environment", "health.exec: invalid type"),
        ("flags", "control_plane.url: \"http://cp\": the control plane is reached by https only"),
        ("flags", "interception.exclude: this is a section, not a value"),
        ("flags", "dns.timeout: \"soon\" is not a duration"),
    ];
    for (layer, what) in expected {
        let found = text.lines().any(|line| line.contains(layer) && line.contains(what));
        assert!(found, "no line has {layer:?} and {what:?} in:\n{text}");
    }
}

#[test]
fn a_named_file_must_exist_and_the_default_need_not() {
    let gone = Sources { file: Some("/nonexistent/agent.toml".into()), environment: Some(vec![]), flags: vec![] };
    let error = Config::load(&gone).expect_err("there is no such file");
    assert!(error.to_string().contains("/nonexistent/agent.toml"), "{error}");
}

#[test]
fn workloads_of_all_files_count_and_the_last_wins_for_one_group() {
    let etc = Etc::new(&[
        ("agent.toml", "[[workload]]\ngroup = \"shop/orders\"\nunit = \"orders.service\""),
        ("agent.d/a.toml", "[[workload]]\ngroup = \"shop/web\"\nuid = 33\ninbound = \"observe\""),
        ("agent.d/b.toml", "[[workload]]\ngroup = \"shop/orders\"\ncgroup = \"/apps/orders/\""),
    ]);
    let config = etc.load(&[], &[]).expect("no mistakes");
    let groups: Vec<&str> = config.workloads.iter().map(|workload| workload.group.as_str()).collect();
    assert_eq!(groups, ["web", "orders"]);
    assert_eq!(config.workloads[0].inbound, Some(InboundMode::Observe));
    let cgroup = Selector { cgroup: Some("apps/orders".into()), ..Selector::default() };
    assert_eq!(config.workloads[1].selector, Some(cgroup));
}

#[test]
fn control_plane_addresses_have_istios_port_unless_said() {
    let check = |text: &str, expect: Result<(&str, u16), ()>| {
        let found = check::control_plane_url(text).map_err(drop);
        assert_eq!(found, expect.map(|(host, port)| (host.to_owned(), port)), "{text}");
    };
    check("https://cp.corp.example", Ok(("cp.corp.example", 15012)));
    check("https://cp.corp.example/", Ok(("cp.corp.example", 15012)));
    check("https://cp.corp.example:443", Ok(("cp.corp.example", 443)));
    check("cp.corp.example:8443", Ok(("cp.corp.example", 8443)));
    check("10.0.0.1", Ok(("10.0.0.1", 15012)));
    check("https://[fd00::1]:15012", Ok(("fd00::1", 15012)));
    check("https://[fd00::1]", Ok(("fd00::1", 15012)));
    check("http://cp", Err(()));
    check("https://cp/path", Err(()));
    check("https://user@cp", Err(()));
    check("", Err(()));
    check("https://", Err(()));
}

#[test]
fn printing_shows_value_and_layer_and_reads_back() {
    let etc = Etc::new(&[("agent.toml", "[drain]\ndeadline = \"9s\"\n[[workload]]\ngroup = \"shop/web\"\nuid = 33")]);
    let printed = etc.load(&[], &[]).expect("no mistakes").print();
    assert!(printed.lines().any(|line| line.starts_with("deadline = \"9s\" # /")), "{printed}");
    assert!(printed.lines().any(|line| line == "exec = true # default"), "{printed}");
    let read_back: raw::RawConfig = toml::from_str(&printed).expect("what is printed is a configuration");
    assert_eq!(read_back.drain.deadline, "9s");
    assert_eq!(read_back.workload.len(), 1);
}
