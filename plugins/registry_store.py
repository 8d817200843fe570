"""The gated registry store: ``--registry-store-uri forward-inf-gate:postgresql://...``.

MLflow imports this module in every process that touches a registry, so all that is heavy is
imported where a store is built.
"""

from __future__ import annotations

from typing import Any

SCHEME = "forward-inf-gate"


def build(store_uri: str | None = None, tracking_uri: str | None = None) -> Any:
    """Return MLflow's SQL registry store behind the gate.

    Reads are never sent to a replica: a replica that lags could hide the newest verdict.

    Args:
        store_uri: ``forward-inf-gate:`` and the address of the database.
        tracking_uri: Unused; MLflow passes it.

    Raises:
        MlflowException: No database is named.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.db_types import DATABASE_ENGINES

    from forward_inf_mlflow.plugins.gated_registry import GatedStore, GatedWorkspaceStore

    database = (store_uri or "").removeprefix(f"{SCHEME}:")
    if database.split(":")[0].split("+")[0] not in DATABASE_ENGINES:
        raise MlflowException.invalid_parameter_value(
            f"--registry-store-uri is {SCHEME}: and the address of a database, such as "
            f"{SCHEME}:sqlite:////srv/mlflow.db or {SCHEME}:postgresql://host/mlflow"
        )
    return (GatedWorkspaceStore if MLFLOW_ENABLE_WORKSPACES.get() else GatedStore)(database)
