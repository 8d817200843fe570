"""What is declared in setup.cfg is what the code imports, no more and no less."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported() -> set[str]:
    """Return the distributions of all modules that the library and its plugins import."""
    modules = set()
    for file in [*(ROOT / "forward_inf_mlflow").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    others = modules - set(sys.stdlib_module_names) - {"forward_inf_mlflow"}
    # MLflow comes as three distributions; the one to declare bears its name.
    known = packages_distributions()
    return {"mlflow" if module == "mlflow" else known[module][0].lower() for module in others}


def test_every_library_that_is_imported_is_declared_and_no_other() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    needed = config["options"]["install_requires"], config["options.extras_require"]["large"]
    lines = [line for text in needed for line in text.split("\n") if line]
    declared = {re.split(r"[ <>=]", line)[0].lower() for line in lines}
    assert declared - {"pyarrow"} == imported() - {"pyarrow"}, "pandas needs pyarrow for parquet"
