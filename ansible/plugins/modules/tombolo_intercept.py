#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r"""
module: tombolo_intercept
short_description: Switch interception on and off
version_added: 1.0.0
description:
  - Lets new connections to the mesh go through the agent, or pass by it. Open connections stay as they are.
  - Switched on with a time, it is taken back by the agent alone unless it is confirmed, whatever becomes of the play.
author: Tombolo maintainers (@tombolo)
options:
  state:
    description:
      - V(on) switches on; with O(confirm_within) it waits for V(confirmed).
      - V(confirmed) keeps what was switched on, and fails when it was taken back.
      - V(off) lets new connections pass.
    type: str
    choices: ["on", confirmed, "off"]
    required: true
  confirm_within:
    description: After how many seconds it is taken back; 0 confirms at once.
    type: int
    default: 0
attributes:
  check_mode:
    description: Asks the agent for its plan.
    support: full
  diff_mode:
    description: Shows the rules that the agent would write, what they concern and what stays untouched.
    support: full
"""

EXAMPLES = r"""
- name: Take connections, for a minute
  tombolo.mesh.tombolo_intercept:
    state: "on"
    confirm_within: 60

- name: Keep it
  tombolo.mesh.tombolo_intercept:
    state: confirmed
"""

RETURN = r"""
interception:
  description: How interception is, as C(tombolo intercept show -o json) says it.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tombolo.mesh.plugins.module_utils.agent import tombolo


def planned(module):
    """The agent's own plan, as text."""
    _code, plan = tombolo(module, ["plan"])
    lines = ["# captured: %s" % (", ".join(plan["captured"]) or "nothing")]
    for connection in plan["open_connections"]:
        lines.append("# stays as it is: %(local)s to %(remote)s (%(owner)s)" % connection)
    lines += ["# untouched: %s" % sentence for sentence in plan["untouched"]]
    return "\n".join(lines + [plan["ruleset"].strip(), ""])


def switch(module, args):
    """Carries a command out; a self-test that fails has taken it back already."""
    code, view = tombolo(module, ["intercept"] + args, codes=(0, 1))
    failed = ["%(check)s: %(detail)s" % test for test in view.get("self_test", []) if not test["passed"]]
    if code != 0:
        why = "; ".join(failed) or view.get("rolled_back_because") or "see `tombolo intercept show`"
        module.fail_json(msg="interception was not switched %s: %s" % (args[0], why), interception=view)
    return view


def main():
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["on", "confirmed", "off"], required=True),
            confirm_within=dict(type="int", default=0),
        ),
        supports_check_mode=True,
    )
    wanted, within = module.params["state"], module.params["confirm_within"]
    _code, view = tombolo(module, ["intercept", "show"])
    now = view["state"]
    if wanted == "confirmed":
        if now == "off" and not module.check_mode:
            why = view["rolled_back_because"] or "nobody switched it on"
            module.fail_json(msg="there is nothing to confirm, interception is off: %s" % why, interception=view)
        if now == "unconfirmed" and not module.check_mode:
            view = switch(module, ["confirm"])
        module.exit_json(changed=now == "unconfirmed", interception=view)
    if (wanted == "off") == (now == "off"):
        module.exit_json(changed=False, interception=view)
    rules = planned(module)
    before, after = ("", rules) if wanted == "on" else (rules, "")
    if not module.check_mode:
        args = ["on", "--confirm-within", "%ds" % within] if wanted == "on" and within else [wanted]
        view = switch(module, args)
    module.exit_json(changed=True, interception=view, diff=dict(before=before, after=after))


if __name__ == "__main__":
    main()
