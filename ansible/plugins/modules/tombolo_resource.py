#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

DOCUMENTATION = r"""
module: tombolo_resource
short_description: Apply or delete resources of the mesh
version_added: 1.0.0
description:
  - Applies documents as C(tombolo apply) does, all or none, or deletes the objects that they name.
author: Tombolo maintainers (@tombolo)
options:
  state:
    description: Whether they are to be there.
    type: str
    choices: [present, absent]
    default: present
  resources:
    description: Whole documents, with apiVersion, kind, metadata and spec.
    type: list
    elements: dict
    required: true
extends_documentation_fragment:
  - tombolo.mesh.controlplane
attributes:
  check_mode:
    description: Asks the control plane, which checks everything and changes nothing.
    support: full
  diff_mode:
    description: Shows the documents before and after.
    support: full
"""

EXAMPLES = r"""
- name: Say what runs where
  tombolo.mesh.tombolo_resource:
    resources: "{{ lookup('ansible.builtin.file', 'shop.yaml') | from_yaml_all }}"
"""

RETURN = r"""
outcomes:
  description: Each object with what happened to it, V(created), V(configured), V(unchanged) or V(deleted).
  type: list
  elements: dict
  returned: success
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.tombolo.mesh.plugins.module_utils.controlplane import (
    CONNECTION,
    ControlPlane,
    ControlPlaneError,
)

SERVERS_OWN = ("resourceVersion", "creationTimestamp", "uid", "generation")


def text(document):
    """The part of a document that people write."""
    if document is None:
        return ""
    kept = {key: value for key, value in document.items() if key != "status"}
    meta = kept.get("metadata", {})
    kept["metadata"] = {key: value for key, value in meta.items() if key not in SERVERS_OWN}
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"


def name_of(document):
    meta = document.get("metadata", {})
    return [document.get("kind", "").lower(), meta.get("namespace", "default"), meta.get("name", "")]


def present(module, plane, resources):
    # What would happen comes first, because only a rehearsal answers the documents before and after.
    would = plane.ask("POST", ["apply"], {"resources": resources}, {"dry_run": "true"})
    changed = any(outcome["action"] != "unchanged" for outcome in would["outcomes"])
    if changed and not module.check_mode:
        plane.ask("POST", ["apply"], {"resources": resources}, {"dry_run": "false"})
    return would["outcomes"]


def absent(module, plane, resources):
    outcomes = []
    for document in resources:
        kind, namespace, name = name_of(document)
        outcome = dict(kind=kind, namespace=namespace, name=name, action="unchanged", before=None, after=None)
        path = ["resources", kind, namespace, name]
        try:
            outcome["before"] = plane.ask("GET", path)
            outcome["action"] = "deleted"
            if not module.check_mode:
                plane.ask("DELETE", path)
        except ControlPlaneError as error:
            if error.status != 404:
                raise
        outcomes.append(outcome)
    return outcomes


def main():
    module = AnsibleModule(
        argument_spec=dict(
            CONNECTION,
            state=dict(type="str", choices=["present", "absent"], default="present"),
            resources=dict(type="list", elements="dict", required=True),
        ),
        supports_check_mode=True,
    )
    plane = ControlPlane(module.params)
    resources = module.params["resources"]
    is_present = module.params["state"] == "present"
    if module.check_mode and plane.is_missing():
        # A control plane that this play would install: everything is new, nothing is there to delete.
        after = "".join(text(document) for document in resources) if is_present else ""
        changed = is_present and bool(resources)
        module.exit_json(changed=changed, outcomes=[], diff=dict(before="", after=after))
    try:
        outcomes = (present if is_present else absent)(module, plane, resources)
    except ControlPlaneError as error:
        module.fail_json(msg=str(error))
    different = [outcome for outcome in outcomes if outcome["action"] != "unchanged"]
    diff = [
        dict(
            before_header="%(kind)s %(namespace)s/%(name)s" % outcome,
            after_header="%(kind)s %(namespace)s/%(name)s" % outcome,
            before=text(outcome.get("before")),
            after=text(outcome.get("after")),
        )
        for outcome in different
    ]
    for outcome in outcomes:
        for warning in outcome.get("warnings") or []:
            module.warn("%s %s/%s: %s" % (outcome["kind"], outcome["namespace"], outcome["name"], warning))
    told = [{key: outcome[key] for key in ("kind", "namespace", "name", "action")} for outcome in outcomes]
    module.exit_json(changed=bool(different), outcomes=told, diff=diff)


if __name__ == "__main__":
    main()
