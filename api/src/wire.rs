//! The wire: the only module that names generated types.
