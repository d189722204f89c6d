#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r"""
module: tombolo_host_info
short_description: What the control plane knows of hosts
version_added: 1.0.0
description:
  - Answers the hosts of the mesh with state, addresses, groups, version and the end of their certificates.
author: Tombolo maintainers (@tombolo)
options:
  name:
    description: Only the host of this name; the answer is empty when there is none.
    type: str
extends_documentation_fragment:
  - tombolo.mesh.controlplane
attributes:
  check_mode:
    description: Changes nothing in any mode.
    support: full
"""

EXAMPLES = r"""
- name: Ask for all hosts
  tombolo.mesh.tombolo_host_info:
  register: mesh

- name: Insist that all are there
  ansible.builtin.assert:
    that: mesh.hosts | rejectattr('state', 'equalto', 'ready') | length == 0
"""

RETURN = r"""
hosts:
  description: The hosts, as C(tombolo host list -o json) says them.
  type: list
  elements: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tombolo.mesh.plugins.module_utils.controlplane import (
    CONNECTION,
    ControlPlane,
    ControlPlaneError,
)


def main():
    module = AnsibleModule(argument_spec=dict(CONNECTION, name=dict(type="str")), supports_check_mode=True)
    try:
        hosts = ControlPlane(module.params).ask("GET", ["hosts"])["items"]
    except ControlPlaneError as error:
        module.fail_json(msg=str(error))
    name = module.params["name"]
    module.exit_json(changed=False, hosts=[host for host in hosts if name in (None, host["name"])])


if __name__ == "__main__":
    main()
