#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r"""
module: tombolo_join
short_description: Make this host part of a mesh, or take it out
version_added: 1.0.0
description:
  - Joins with a token, which goes to C(tombolo join) by its standard input. A host that has joined stays as it is.
  - Joining starts nothing and changes no traffic.
author: Tombolo maintainers (@tombolo)
options:
  state:
    description: Whether this host is to be in the mesh. V(absent) forgets its identity, also here.
    type: str
    choices: [present, absent]
    default: present
  url:
    description: The control plane, https://HOST[:15012]. Needed to join.
    type: str
  token:
    description: The join token. Needed to join.
    type: str
  name:
    description: What this host is called in the mesh.
    type: str
  groups:
    description: The WorkloadGroups it runs. A host that has joined others is refused.
    type: list
    elements: str
    default: []
  advertise:
    description: Where peers reach this host, instead of the addresses that are found out.
    type: list
    elements: str
    default: []
  force:
    description: Leave also when the control plane cannot be told.
    type: bool
    default: false
  state_dir:
    description: The agent's C(paths.state_dir).
    type: path
    default: /var/lib/tombolo
attributes:
  check_mode:
    description: Says whether it would join or leave.
    support: full
"""

EXAMPLES = r"""
- name: Join
  tombolo.mesh.tombolo_join:
    url: "{{ token.url }}"
    token: "{{ token.token }}"
    groups: [shop/orders]
"""

RETURN = r"""
identity:
  description: Who this host is in the mesh, when it has joined.
  type: dict
  returned: when it has joined
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tombolo.mesh.plugins.module_utils.agent import tombolo


def joined(module):
    """What this host remembers of its joining, or nothing."""
    path = os.path.join(module.params["state_dir"], "identity.json")
    try:
        with open(path) as file:
            return json.load(file)
    except OSError:
        return None
    except ValueError as error:
        module.fail_json(msg="%s cannot be read (%s): run `tombolo doctor` on this host" % (path, error))


def ensure_same(module, identity):
    """A host keeps its name and groups for as long as it is in the mesh."""
    for key, has in (("name", identity.get("host")), ("groups", identity.get("groups"))):
        wanted = module.params[key]
        if wanted and has is not None and (sorted(wanted) != sorted(has) if key == "groups" else wanted != has):
            module.fail_json(
                msg="this host has joined with %s %s and the inventory says %s: change the inventory back, or let it "
                "leave first (agent_state: absent) and join anew" % (key, json.dumps(has), json.dumps(wanted))
            )


def ensure_here(module):
    """The identity of a machine of which this one is a copy is no identity of this host."""
    program = module.get_bin_path("tombolo")
    code, _out, err = module.run_command([program, "status"]) if program else (0, "", "")
    if code == 3:
        module.fail_json(msg=err.strip())


def present(module):
    identity = joined(module)
    if identity is not None:
        ensure_same(module, identity)
        ensure_here(module)
        module.exit_json(changed=False, identity=identity)
    if module.check_mode:
        module.exit_json(changed=True)
    for needed in ("url", "token"):
        if not module.params[needed]:
            module.fail_json(msg="this host has not joined, and to join it needs %s" % needed)
    args = ["join", module.params["url"], "--token-stdin"]
    if module.params["name"]:
        args += ["--name", module.params["name"]]
    for flag, values in (("--group", module.params["groups"]), ("--advertise", module.params["advertise"])):
        for value in values:
            args += [flag, value]
    tombolo(module, args, data=module.params["token"])
    module.exit_json(changed=True, identity=joined(module))


def absent(module):
    if joined(module) is None:
        module.exit_json(changed=False)
    if not module.check_mode:
        tombolo(module, ["leave", "--purge"] + (["--force"] if module.params["force"] else []))
    module.exit_json(changed=True)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["present", "absent"], default="present"),
            url=dict(type="str"),
            token=dict(type="str", no_log=True),
            name=dict(type="str"),
            groups=dict(type="list", elements="str", default=[]),
            advertise=dict(type="list", elements="str", default=[]),
            force=dict(type="bool", default=False),
            state_dir=dict(type="path", default="/var/lib/tombolo"),
        ),
        supports_check_mode=True,
    )
    (present if module.params["state"] == "present" else absent)(module)


if __name__ == "__main__":
    main()
