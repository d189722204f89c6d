# SPDX-License-Identifier: Apache-2.0
"""The control plane's REST API, as the operator's modules and the inventory plugin use it."""

import json
import os
from urllib.error import HTTPError
from urllib.parse import quote, urlencode

from ansible.module_utils.common.text.converters import to_native, to_text
from ansible.module_utils.urls import open_url

# As the control plane's package leaves them on its machine.
DATA = "/var/lib/tombolo-controlplane"

CONNECTION = dict(
    url=dict(type="str", default="https://127.0.0.1:15014"),
    ca_file=dict(type="path", default=DATA + "/ca.pem"),
    token_file=dict(type="path", default=DATA + "/admin.token", no_log=False),
    operator_token=dict(type="str", no_log=True),
)


class ControlPlaneError(Exception):
    """A sentence for the operator: what happened and what to do."""

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class ControlPlane:
    """One control plane and the operator's token for it."""

    def __init__(self, params):
        self.url = params["url"].rstrip("/")
        self.ca_file = params["ca_file"]
        self.token_file = params["token_file"]
        self.given_token = params.get("operator_token")

    def is_missing(self):
        """Whether nothing was installed yet where its files should be: what check mode meets on a new site."""
        return not self.given_token and not os.path.exists(self.token_file)

    def _token(self):
        if self.given_token:
            return self.given_token
        try:
            with open(self.token_file) as file:
                return file.read().strip()
        except OSError as error:
            raise ControlPlaneError(
                "cannot read the operator's token: %s; say token_file, or run this where the control plane is"
                % to_native(error)
            )

    def ask(self, method, path, body=None, query=None):
        """Answers the JSON; `path` is a list, each part quoted."""
        url = self.url + "/v1/" + "/".join(quote(part, safe="") for part in path)
        if query:
            url += "?" + urlencode(query)
        if not os.path.exists(self.ca_file):
            raise ControlPlaneError("there is no %s: say ca_file, the control plane's ca.pem" % self.ca_file)
        headers = {"Authorization": "Bearer " + self._token(), "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        try:
            answer = open_url(url, data=data, headers=headers, method=method, timeout=30, ca_path=self.ca_file)
            return json.loads(to_text(answer.read()) or "{}")
        except HTTPError as error:
            raise ControlPlaneError(self._refusal(error), error.code)
        except Exception as error:
            raise ControlPlaneError("cannot ask the control plane at %s: %s" % (self.url, to_native(error)))

    @staticmethod
    def _refusal(error):
        try:
            refusal = json.loads(to_text(error.read()))
            parts = [refusal["message"]] + refusal.get("mistakes", []) + [refusal.get("hint", "")]
            return "; ".join(part for part in parts if part)
        except Exception:
            return "the control plane answered %s" % error.code
