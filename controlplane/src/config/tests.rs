//! Tests of `config`, the file beside this folder.

use super::*;

struct Etc {
    folder: tempfile::TempDir,
}

impl Etc {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("controlplane.d")).expect("a fresh folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a fresh folder");
        }
        Self { folder }
    }

    fn load(&self, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        Config::load(&Sources {
            file: Some(self.folder.path().join("controlplane.toml")),
            environment: Some(environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
            credentials: Some(self.folder.path().to_owned()),
            flags: flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
        })
    }
}

const TD: (&str, &str) = ("mesh.trust_domain", "corp.example");

#[test]
fn the_shipped_file_is_the_defaults() {
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/etc/controlplane.toml");
    let text = std::fs::read_to_string(&shipped).expect("it is in the tree");
    let etc = Etc::new(&[("controlplane.toml", &text)]);
    let layered = layers::read(&Sources {
        file: Some(etc.folder.path().join("controlplane.toml")),
        environment: Some(Vec::new()),
        ..Sources::default()
    });
    assert_eq!(layered.mistakes, []);
    for (read, default) in layered.effective.iter().zip(layers::defaults()) {
        assert_eq!((read.key, &read.value), (default.key, &default.value));
        assert!(read.layer.ends_with("controlplane.toml"), "{} is not in the shipped file", read.key);
    }
}

#[test]
fn a_higher_layer_counts() {
    let etc = Etc::new(&[
        ("controlplane.toml", "[registry]\nlease = \"20s\"\ngrace = \"1s\"\n[log]\nfilter = \"warn\""),
        ("controlplane.d/20.toml", "[registry]\nlease = \"22s\""),
        ("controlplane.d/10.toml", "[registry]\nlease = \"21s\""),
        ("controlplane.d/notes.txt", "not TOML"),
    ]);
    let environment = [("TOMBOLO__LOG__FILTER", "debug"), ("TOMBOLO__MESH__ADVERTISE", "a.example, 10.0.0.1")];
    let config = etc.load(&environment, &[TD, ("log.filter", "trace")]).expect("it is right");
    assert_eq!((config.lease.as_secs(), config.grace.as_secs()), (22, 1));
    assert_eq!(
        (config.log_filter.as_str(), config.advertise),
        ("trace", vec!["a.example".to_owned(), "10.0.0.1".to_owned()])
    );
    assert_eq!(config.store.to_string(), "sqlite:///var/lib/tombolo-controlplane/state.db");
    let printed = etc.load(&environment, &[TD]).expect("it is right").print();
    assert!(printed.contains("[registry]\nlease = \"22s\" # ") && printed.contains("20.toml"), "{printed}");
    assert!(printed.contains("filter = \"debug\" # environment"), "{printed}");
}

#[test]
fn all_mistakes_are_told_at_once_with_their_layer() {
    let text =
        "surprise = 1\n[registry]\nlease = \"1s\"\nleaze = \"1s\"\n[log]\nformat = \"xml\"\n[grpc]\nlisten = [\"a\"]";
    let etc = Etc::new(&[("controlplane.toml", text), ("controlplane.d/bad.toml", "[store\n")]);
    let flags = [
        ("paths.data_dir", "relative"),
        ("api.listen", "15014"),
        ("mesh.trust_domain", "Corp"),
        ("mesh.advertise", "https://a"),
        ("store.url", "mysql://x"),
    ];
    let error = etc.load(&[("TOMBOLO__REGISTRY__GRACE", "soon")], &flags).expect_err("much is wrong").to_string();
    for expected in [
        "the configuration has 12 mistakes:",
        "controlplane.toml: surprise: there is no such section",
        "controlplane.toml: registry.lease: 1s is not between 3s and 600s",
        "controlplane.toml: registry.leaze: there is no such key; [registry] has lease, grace",
        "controlplane.toml: log.format: \"xml\" is not one of auto, text, json, journald",
        "controlplane.toml: grpc.listen: one value is meant, not a list",
        "bad.toml: ",
        "environment: registry.grace: \"soon\" is not a time such as",
        "flags: paths.data_dir: \"relative\" is not an absolute path",
        "flags: api.listen: \"15014\" is not IP:PORT",
        "flags: mesh.trust_domain: \"Corp\" is not a trust domain",
        "flags: mesh.advertise: \"https://a\" is neither a host name nor an IP address",
        "flags: store.url: \"mysql\" is not a store",
    ] {
        assert!(error.contains(expected), "{expected}\n{error}");
    }
    let missing = Etc::new(&[]).load(&[], &[]).expect_err("no such file, no trust domain").to_string();
    assert!(missing.contains("controlplane.toml: cannot be read: No such file"), "{missing}");
    assert!(missing.contains("default: mesh.trust_domain: is needed"), "{missing}");
}

#[test]
fn a_password_comes_from_a_file_and_is_never_shown() {
    let etc = Etc::new(&[("controlplane.toml", ""), ("secret", "hunter2\n")]);
    let refused = etc.load(&[], &[TD, ("store.url", "postgres://u:hunter2@db/mesh")]).expect_err("argv is public");
    assert!(refused.to_string().contains("give --store-password-file"), "{refused}");
    assert!(!refused.to_string().contains("hunter2"));
    let secret = etc.folder.path().join("secret").display().to_string();
    let flags = [TD, ("store.url", "postgres://u@db/mesh"), ("store.password_file", secret.as_str())];
    let config = etc.load(&[], &flags).expect("it is right");
    assert!(!format!("{config:?}").contains("hunter2"));
    let environment = [("TOMBOLO__STORE__URL", "postgres://u:hunter2@db/mesh")];
    let config = etc.load(&environment, &[TD]).expect("the environment is private");
    assert!(!format!("{config:?} {}", config.print()).contains("hunter2"));
    let missing = etc.load(&[], &[TD, ("store.url", "postgres://u@db/mesh"), ("store.password_file", "/none")]);
    assert!(missing.expect_err("no such file").to_string().contains("/none cannot be read"));
}
