# SPDX-License-Identifier: Apache-2.0
"""QEMU's migrations, by QMP."""

import contextlib

from tests.lab import wait_until

LIMIT_S = 120


class MigrationFailed(Exception):
    pass


def set_capabilities(qmp, names, state):
    if names:
        qmp.execute("migrate-set-capabilities", capabilities=[{"capability": name, "state": state} for name in names])


@contextlib.contextmanager
def settings(qmp, capabilities=(), parameters=None):
    """Capabilities on and parameters set; as they were afterwards. No limit of bandwidth: it is meant for networks."""
    parameters = {"max-bandwidth": 1 << 40, **(parameters or {})}
    now = qmp.execute("query-migrate-parameters")
    before = {name: now[name] for name in parameters}
    set_capabilities(qmp, capabilities, True)
    try:
        qmp.execute("migrate-set-parameters", **parameters)
        yield
    finally:
        set_capabilities(qmp, capabilities, False)
        qmp.execute("migrate-set-parameters", **before)


def completed(qmp):
    state = qmp.execute("query-migrate")
    if state.get("status") in ("failed", "cancelled"):
        raise MigrationFailed(f"QEMU's migration {state['status']}: {state.get('error-desc', 'no reason given')}")
    return state.get("status") == "completed"


def run(qmp, uri, limit=LIMIT_S, check=lambda: None):
    """`check` is called again and again meanwhile, and may raise."""
    qmp.execute("migrate", uri=uri)

    def done():
        check()
        return completed(qmp)
    wait_until(done, limit, "QEMU's migration", interval=0.002)


def end(qmp, limit=60):
    """Whatever migration is under way is no more."""
    under_way = ("setup", "active", "cancelling", "device", "pre-switchover")

    def ended():
        return qmp.execute("query-migrate").get("status") not in under_way
    if not ended():
        qmp.execute("migrate_cancel")
        wait_until(ended, limit, "the end of a migration")
