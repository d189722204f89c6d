//! Which machine this is, so that state that was copied to another one is noticed.
//!
//! machine-id(5) says how: a hash of the id with a name of our own, never the id itself.

use std::fs;

use sha2::{Digest, Sha256};

/// What ties stored state to this machine; `None` where nothing lasting tells machines apart.
pub(crate) fn binding() -> Option<String> {
    let id = fs::read_to_string(MACHINE_ID).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if is_mounted(&mounts) { None } else { bound_to(&id) }
}

/// systemd mounts an id over the file that lasts until the next boot only, container engines mount the host's.
fn is_mounted(mountinfo: &str) -> bool {
    // proc_pid_mountinfo(5): the fifth field is the mount point.
    mountinfo.lines().any(|line| line.split(' ').nth(4) == Some(MACHINE_ID))
}

/// An image that was not booted yet has an empty file, or the word `uninitialized`.
fn bound_to(id: &str) -> Option<String> {
    let id = id.trim();
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = is_id.then(|| Sha256::digest(format!("tombolo-agent {id}")))?;
    Some(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

const MACHINE_ID: &str = "/etc/machine-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_binds_without_being_shown_and_an_image_without_one_does_not() {
        let id = "0123456789abcdef0123456789abcdef";
        let bound = bound_to(&format!("{id}\n")).expect("an id");
        assert!(bound.len() == 32 && bound != id, "{bound}");
        assert_eq!(bound_to(&id.replace('0', "1")).map(|other| other != bound), Some(true));
        for none in ["", "\n", "uninitialized\n", "0123"] {
            assert_eq!(bound_to(none), None, "{none:?}");
        }
    }

    #[test]
    fn an_id_for_one_boot_is_told_by_its_mount() {
        let root = "23 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw\n";
        assert!(!is_mounted(root));
        assert!(is_mounted(&format!("{root}31 23 0:25 /machine-id /etc/machine-id ro - tmpfs tmpfs rw\n")));
    }
}
