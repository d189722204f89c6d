# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r"""
name: hosts
short_description: The hosts of a mesh, as its control plane knows them
version_added: 1.0.0
description:
  - Reads the hosts from the control plane. All are in the group C(tombolo_hosts), those of a WorkloadGroup also in
    C(NAMESPACE_NAME), and those in a state other than C(ready) in C(tombolo_state_STATE).
  - Each has C(tombolo_host), what the control plane says of it, and its first address as C(ansible_host).
author: Tombolo maintainers (@tombolo)
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: V(tombolo.mesh.hosts).
    required: true
    choices: [tombolo.mesh.hosts]
  url:
    description: Where operators reach the control plane.
    type: str
    required: true
    env:
      - name: TOMBOLO_URL
  ca_file:
    description: Its root certificates (PEM).
    type: path
    required: true
    env:
      - name: TOMBOLO_CA
  token_file:
    description: A file with the operator's token.
    type: path
    default: ""
    env:
      - name: TOMBOLO_TOKEN_FILE
  operator_token:
    description: The operator's token itself, instead of O(token_file).
    type: str
    env:
      - name: TOMBOLO_TOKEN
"""

EXAMPLES = r"""
# mesh.tombolo.yml
plugin: tombolo.mesh.hosts
url: https://mesh.corp.example:15014
ca_file: ca.pem
token_file: admin.token
"""

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible_collections.tombolo.mesh.plugins.module_utils.controlplane import ControlPlane, ControlPlaneError


class InventoryModule(BaseInventoryPlugin, Constructable):
    NAME = "tombolo.mesh.hosts"

    def verify_file(self, path):
        return super().verify_file(path) and path.endswith(("tombolo.yml", "tombolo.yaml"))

    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        names = ("url", "ca_file", "token_file", "operator_token")
        try:
            hosts = ControlPlane({name: self.get_option(name) for name in names}).ask("GET", ["hosts"])["items"]
        except ControlPlaneError as error:
            raise AnsibleParserError("%s: %s" % (path, error))
        self.inventory.add_group("tombolo_hosts")
        for host in hosts:
            self._add(host)

    def _add(self, host):
        name = host["name"]
        self.inventory.add_host(name, group="tombolo_hosts")
        groups = list(host["groups"]) + ([] if host["state"] == "ready" else ["tombolo_state_" + host["state"]])
        for group in groups:
            group = self.inventory.add_group(self._sanitize_group_name(group))
            self.inventory.add_host(name, group=group)
        self.inventory.set_variable(name, "tombolo_host", host)
        if host["addresses"]:
            self.inventory.set_variable(name, "ansible_host", host["addresses"][0])
        strict = self.get_option("strict")
        facts = self.inventory.get_host(name).get_vars()
        self._set_composite_vars(self.get_option("compose"), facts, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), facts, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), facts, name, strict=strict)
