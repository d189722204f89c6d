# SPDX-License-Identifier: Apache-2.0
"""Filters of the roles: names that nobody meant, and settings as TOML."""

import difflib
import json
import pathlib

import yaml

from ansible.errors import AnsibleFilterError

GROUPS = ("tombolo_controlplane", "tombolo_hosts", "tombolo_postgres")


ROLES = pathlib.Path(__file__).resolve().parents[2] / "roles"


def _options(role):
    spec = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    return set(spec["argument_specs"]["main"]["options"])


def misspelt(names, role):
    """A sentence for each name that is no variable of ours but hardly different from one of the role's."""
    ours = set().union(*(_options(one.name) for one in ROLES.iterdir()))
    return _close(set(names) - ours, _options(role), "variable")


def misspelt_groups(names):
    """The same for the groups of the inventory."""
    return _close(set(names) - set(GROUPS), GROUPS, "group")


def _close(names, known, what):
    sentences = []
    for name in sorted(name for name in names if not name.startswith(("_", "ansible_"))):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if close:
            sentences.append("there is no %s %s, did you mean %s?" % (what, name, close[0]))
    return sentences


def to_toml(settings):
    """Nested settings as a TOML file. Tables come after plain values, as TOML wants it."""
    return "".join(_table([], settings)).lstrip("\n")


def _table(path, table):
    plain = {key: value for key, value in table.items() if not _is_table(value)}
    if plain and path:
        yield "\n[%s]\n" % ".".join(path)
    for key, value in plain.items():
        yield "%s = %s\n" % (key, _value(value, path + [key]))
    for key, value in table.items():
        if isinstance(value, dict):
            for part in _table(path + [key], value):
                yield part
        elif _is_table(value):
            for one in value:
                yield "\n[[%s]]\n" % ".".join(path + [key])
                for inner, inner_value in one.items():
                    yield "%s = %s\n" % (inner, _value(inner_value, path + [key, inner]))


def _is_table(value):
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _value(value, path):
    if isinstance(value, list):
        return "[%s]" % ", ".join(_value(one, path) for one in value)
    if isinstance(value, bool) or isinstance(value, (int, float)):
        return str(value).lower()
    if isinstance(value, str):
        # TOML's basic strings are JSON's.
        return json.dumps(str(value))
    raise AnsibleFilterError("%s: %r is neither text, number, true or false, nor a list of them" % (".".join(path), value))


class FilterModule:
    def filters(self):
        return dict(misspelt=misspelt, misspelt_groups=misspelt_groups, to_toml=to_toml)
