//! The Ansible collection as operators meet it: built, installed, run over SSH on booted Debian machines that
//! take the packages from a signed repository.
//!
//! The controller's `ansible-playbook` is in target/ansible/venv, which `make test-ansible` makes.

mod check_mode;
mod copied;
mod dnf;
mod documents;
mod interception;
mod inventory;
mod lab;
mod quality;
mod recap;
mod upgrade;
