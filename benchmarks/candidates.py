"""Candidates for many queries: what the rows that a last layer points to hold of the true top.

Every query of a setting is swept over all training rows, and over its candidates alone; recall is
the share of the true ten first and ten last rows that are among the candidates, over all queries,
and as the four checked queries show it, which is what users see.

    OMP_NUM_THREADS=1 python benchmarks/candidates.py [--json FILE]

About 3 minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from measure import line, machine, write
from settings import SettingError, load

from forward_inf_mlflow.directions import Curvature
from forward_inf_mlflow.influence import ForwardInfluence, QueryGroups
from forward_inf_mlflow.screened import screened_top
from forward_inf_mlflow.tasks import Classification
from forward_inf_mlflow.tensors import Tensors

TOP, COUNTS = 10, (25, 50, 100, 200)


def recalls(name: str) -> dict[int, dict[str, float]]:
    """Return true and shown recall, and the share of the whole sweep's passes, by candidates."""
    setting, host = load(name), torch.device("cpu")
    module = setting.fit(None, 0)
    train = Tensors(setting.train_x, setting.train_y, host, 250)
    queries = Tensors(setting.query_x, setting.query_y, host, 250)
    groups = QueryGroups.each(queries, np.arange(len(queries)).astype(str))
    engine = ForwardInfluence(
        task=Classification(), direction=Curvature(penalty=setting.weight_decay)
    )
    asked = (module, groups, train, np.arange(len(train)).astype(str), TOP)
    whole = engine.top(*asked)
    found = {}
    for count in COUNTS:
        some = screened_top(engine, *asked, count=count)
        both = whole.rows.merge(some.rows, on=["query_id", "kind", "train_id"])
        found[count] = {
            "recall": len(both) / len(whole.rows),
            "shown": float(some.facts["recall"]),  # type: ignore[arg-type]
            "passes": some.forward_passes / whole.forward_passes,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = machine("numpy")
    print(line(facts), end="\n\n")
    results: dict[str, object] = {"machine": facts}
    try:
        for name in ("digits_mlp", "cifar10n_cnn"):
            results[name] = found = recalls(name)
            for count, row in found.items():
                print(name, count, *(f"{key} {value:.3f}" for key, value in row.items()))
    except SettingError as error:
        parser.exit(2, f"{error}\n")
    write(arguments.json, results)


if __name__ == "__main__":
    main()
