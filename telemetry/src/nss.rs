//! Pins how libc looks names up, so that a static program survives every host's nsswitch.conf.
//!
//! A static glibc program that resolves a name dlopens the modules nsswitch.conf names (`resolve`,
//! `myhostname`, `sss`) from the host's own glibc and dies there when the versions differ: SIGFPE on
//! Debian 13, an assertion on Debian 11. `files` and `dns` are inside libc.a since glibc 2.34.
//! Called by each program's `main` before anything else. What only another module knows (mDNS,
//! LDAP) stays unknown to us.
#![expect(unsafe_code, reason = "libc has no safe way to pin its name services")]

use std::ffi::{CStr, c_char, c_int};

unsafe extern "C" {
    fn __nss_configure_lookup(database: *const c_char, service_line: *const c_char) -> c_int;
}

/// Each database that code of ours or of a library can ask, and the modules it may use.
const LOOKUPS: [(&CStr, &CStr); 5] = [
    (c"hosts", c"files dns"),
    (c"passwd", c"files"),
    (c"group", c"files"),
    (c"services", c"files"),
    (c"protocols", c"files"),
];

/// Call it first in `main`, while there is one thread. A database that libc refuses to configure
/// keeps its nsswitch.conf line; the call cannot fail in another way.
pub fn pin() {
    for (database, service_line) in LOOKUPS {
        // SAFETY: both are NUL-terminated statics, which libc only reads. It is not thread-safe
        // against a running look-up: the caller is the only thread.
        unsafe { __nss_configure_lookup(database.as_ptr(), service_line.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use std::net::ToSocketAddrs;

    #[test]
    fn localhost_resolves_after_pinning() {
        super::pin();
        let found: Vec<_> = ("localhost", 80).to_socket_addrs().expect("/etc/hosts knows localhost").collect();
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
