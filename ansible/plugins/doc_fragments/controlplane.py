# SPDX-License-Identifier: Apache-2.0
"""What every module says that asks the control plane."""


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description: Where operators reach the control plane.
    type: str
    default: https://127.0.0.1:15014
  ca_file:
    description: Its root certificates (PEM), on the machine where the module runs.
    type: path
    default: /var/lib/tombolo-controlplane/ca.pem
  token_file:
    description: The operator's token, on the machine where the module runs.
    type: path
    default: /var/lib/tombolo-controlplane/admin.token
  operator_token:
    description: The operator's token itself, instead of O(token_file).
    type: str
notes:
  - Run it on the control plane, where the defaults are right, or wherever its API can be reached.
"""
