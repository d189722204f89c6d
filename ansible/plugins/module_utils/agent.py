# SPDX-License-Identifier: Apache-2.0
"""The host's own `tombolo`, as the host's modules call it."""

import json


def tombolo(module, args, data=None, codes=(0,)):
    """Runs `tombolo ARGS -o json` and answers what it says as data; fails the module on another exit code."""
    line = [module.get_bin_path("tombolo", required=True)] + args + ["-o", "json"]
    code, out, err = module.run_command(line, data=data)
    if code not in codes:
        why = err.strip() or out.strip()
        module.fail_json(msg="`%s` ended with %d: %s" % (" ".join(line), code, why), rc=code)
    try:
        return code, json.loads(out or "{}")
    except ValueError:
        module.fail_json(msg="`%s` did not answer JSON: %s" % (" ".join(line), out), rc=code)
