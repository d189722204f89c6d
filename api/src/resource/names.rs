//! The shapes of names and labels, as Kubernetes checks them (apimachinery, `validation.go`). Each
//! check answers what was expected. Pure.

/// Says nothing, or what was expected instead.
pub(super) type Check = fn(&str) -> Result<(), &'static str>;

const LABEL: &str = "a DNS label (1 to 63 of a-z 0-9 -, letters or digits at both ends)";
const SERVICE: &str = "a service name (1 to 63 of a-z 0-9 -, beginning with a letter, ending with a letter or digit)";
const SUBDOMAIN: &str = "a name (at most 253 of a-z 0-9 - and dots, letters or digits at both ends of each part)";
const PORT_NAME: &str = "a port name (1 to 15 of a-z 0-9 -, with a letter, no hyphen at the ends or twice in a row)";
const QUALIFIED: &str = "a label key (an optional DNS-PREFIX/ and 1 to 63 of A-Z a-z 0-9 - _ .)";
const VALUE: &str = "a label value (at most 63 of A-Z a-z 0-9 - _ ., letters or digits at both ends)";
const HOSTNAME: &str = "a full DNS name such as db.corp.example";

fn is_label(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends = !text.starts_with('-') && !text.ends_with('-');
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && ends
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// DNS-1123 label: namespaces.
pub(super) fn label(text: &str) -> Result<(), &'static str> {
    if is_label(text) { Ok(()) } else { Err(LABEL) }
}

/// DNS-1035 label: services, whose name is a part of a hostname.
pub(super) fn service(text: &str) -> Result<(), &'static str> {
    if is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase()) { Ok(()) } else { Err(SERVICE) }
}

/// DNS-1123 subdomain: every other object.
pub(super) fn subdomain(text: &str) -> Result<(), &'static str> {
    if is_subdomain(text) { Ok(()) } else { Err(SUBDOMAIN) }
}

/// A name that a ServiceEntry declares: at least two parts, so that it cannot hide a host's own.
pub(super) fn hostname(text: &str) -> Result<(), &'static str> {
    let numeric = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if is_subdomain(text) && text.contains('.') && !numeric { Ok(()) } else { Err(HOSTNAME) }
}

/// IANA service name (RFC 6335 §5.1): ports.
pub(super) fn port_name(text: &str) -> Result<(), &'static str> {
    let letter = text.bytes().any(|b| b.is_ascii_lowercase());
    if is_label(text) && text.len() <= 15 && letter && !text.contains("--") { Ok(()) } else { Err(PORT_NAME) }
}

/// The key of a label or annotation.
pub(super) fn qualified(text: &str) -> Result<(), &'static str> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if prefix.is_none_or(is_subdomain) && !name.is_empty() && is_value(name) { Ok(()) } else { Err(QUALIFIED) }
}

/// The value of a label; it may be empty.
pub(super) fn label_value(text: &str) -> Result<(), &'static str> {
    if is_value(text) { Ok(()) } else { Err(VALUE) }
}

/// Annotations hold anything.
pub(super) fn anything(_: &str) -> Result<(), &'static str> {
    Ok(())
}

fn is_value(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let outer = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63 && text.bytes().all(inner) && outer(text.bytes().next()) && outer(text.bytes().last())
}
