//! Tables for the connection's settings.

use super::*;

#[test]
fn a_server_is_an_https_url_with_the_rest_port() {
    let cases = [
        ("https://mesh.corp", "https://mesh.corp:15014/"),
        ("mesh.corp", "https://mesh.corp:15014/"),
        ("10.0.0.1:9999", "https://10.0.0.1:9999/"),
        ("https://mesh.corp:443", "https://mesh.corp/"),
        ("https://[fd00::1]", "https://[fd00::1]:15014/"),
    ];
    for (text, expected) in cases {
        assert_eq!(server_url(text).expect(text).as_str(), expected);
    }
    for text in ["http://mesh.corp", "https://", "://", "ftp://x"] {
        assert!(server_url(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn a_pin_is_a_sha256() {
    let hex = "0a".repeat(32);
    assert_eq!(parse_pin(&format!("sha256:{hex}")).expect("valid"), [10; 32]);
    assert_eq!(parse_pin(&hex.to_uppercase()).expect("valid"), [10; 32]);
    for text in ["", "sha256:", "sha256:0a", "sha512:0a0a", &"zz".repeat(32)] {
        assert!(parse_pin(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn a_context_file_with_an_unknown_key_is_refused() {
    let good = "current = \"a\"\n[contexts.a]\nserver = \"https://m\"\nca = \"/ca.pem\"\ntoken_file = \"/t\"\n";
    let file: ConfigFile = toml::from_str(good).expect("valid");
    assert_eq!(file.contexts["a"].server, "https://m");
    let again: ConfigFile = toml::from_str(&toml::to_string(&file).expect("plain")).expect("round trip");
    assert_eq!(again.current.as_deref(), Some("a"));
    assert!(toml::from_str::<ConfigFile>("[contexts.a]\nserver = \"x\"\ntoken = \"secret\"\n").is_err());
}
