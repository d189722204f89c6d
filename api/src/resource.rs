//! The resource kinds people write. Being built.
