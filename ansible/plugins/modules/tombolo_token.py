#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r"""
module: tombolo_token
short_description: Make a join token
version_added: 1.0.0
description:
  - Makes a token by which hosts join the mesh. Each call makes a new one, so call it only for a host that is to join.
  - The answer holds the token. Say C(no_log=true) on the task.
author: Tombolo maintainers (@tombolo)
options:
  groups:
    description: The WorkloadGroups that a host may join with it, as NAMESPACE/NAME.
    type: list
    elements: str
    required: true
  ttl:
    description: How many seconds it can be used.
    type: int
    default: 600
  uses:
    description: How many hosts can join with it.
    type: int
    default: 1
  name_pattern:
    description: Which names a joining host may take, with * and ? as in a shell. Empty allows any.
    type: str
    default: ""
  cidrs:
    description: From which addresses hosts may join. Empty allows any.
    type: list
    elements: str
    default: []
  approval:
    description: Whether a host that joined waits for C(tombolo host approve).
    type: bool
    default: false
extends_documentation_fragment:
  - tombolo.mesh.controlplane
attributes:
  check_mode:
    description: Makes no token, and answers none.
    support: full
"""

EXAMPLES = r"""
- name: Make a token for this host, on the control plane
  tombolo.mesh.tombolo_token:
    groups: [shop/orders]
    name_pattern: "{{ inventory_hostname_short }}"
  delegate_to: cp1
  register: token
  no_log: true
"""

RETURN = r"""
token:
  description: The token. Not in check mode.
  type: str
  returned: changed
url:
  description: Where hosts join.
  type: str
  returned: changed
id:
  description: What the token is called in C(tombolo token list).
  type: str
  returned: changed
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tombolo.mesh.plugins.module_utils.controlplane import (
    CONNECTION,
    ControlPlane,
    ControlPlaneError,
)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            CONNECTION,
            groups=dict(type="list", elements="str", required=True),
            ttl=dict(type="int", default=600),
            uses=dict(type="int", default=1),
            name_pattern=dict(type="str", default=""),
            cidrs=dict(type="list", elements="str", default=[]),
            approval=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    wanted = {key: module.params[key] for key in ("groups", "uses", "name_pattern", "cidrs", "approval")}
    wanted["ttl_s"] = module.params["ttl"]
    try:
        made = ControlPlane(module.params).ask("POST", ["tokens"], wanted)
    except ControlPlaneError as error:
        module.fail_json(msg="no token for %s: %s" % (", ".join(wanted["groups"]), error))
    words = made["join_command"].split()
    url = words[words.index("join") + 1]
    module.exit_json(changed=True, token=made["token"], url=url, id=made["view"]["id"])


if __name__ == "__main__":
    main()
