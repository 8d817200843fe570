"""What the gate costs a server, whether it keeps its head in a crowd, and what forgers get.

Real servers over sqlite. "Latency" is one allowed move of a protected alias, to and fro between two
versions, over a kept HTTP connection, asked in turn of a server with MLflow's own registry store
and of one with the gate before it, one worker each; the files of "10 MB hashed" lie on the server's
disk. "Crowd" sends 100 such requests at once to two workers, a third of them for versions whose
only verdict is forged. "Forgeries" are verdicts with one field changed, by other keys, of other
versions, expired and so on: each is offered to the server as a tag and, where that is refused,
written past it into the database, and then the alias is asked for.

    OMP_NUM_THREADS=1 python benchmarks/gate.py [--calls 300] [--rounds 10] [--json FILE]

About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
from measure import line, machine, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conftest import Server, empty_database, serve
from gate_cases import (
    ADA,
    HOUR,
    STRANGER,
    forgeries,
    now,
    override_for,
    subject_of,
    verdict_on,
    write_gate,
)
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from forward_inf_mlflow.models.content import content_sha256
from forward_inf_mlflow.verdicts.gate_file import default_gate_text
from forward_inf_mlflow.verdicts.seal import Sealed

SOURCE = "s3://nowhere/model"
DAY = 24 * HOUR


def start(stack: ExitStack, *, gated: bool, workers: int) -> tuple[Server, Path]:
    """Start a server on a new store, with the default gate or without one."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / "mlflow.db").write_bytes(empty_database())
    write_gate(folder)
    registry = f"forward-inf-gate:sqlite:///{folder}/mlflow.db"
    switches = ("--registry-store-uri", registry) if gated else ()
    return stack.enter_context(serve(folder, *switches, workers=workers)), folder


def register(client: MlflowClient, name: str, source: str = SOURCE, **more: str) -> str:
    client.create_registered_model(name)
    return str(client.create_model_version(name, source, **more).version)


def keep(client: MlflowClient, name: str, version: str, sealed: Sealed) -> None:
    client.set_model_version_tag(name, version, sealed.tag, sealed.text)


def plant(folder: Path, name: str, version: str, sealed: Sealed) -> None:
    """Write a tag into the database, past the server."""
    with closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as database, database:
        database.execute(
            "INSERT OR REPLACE INTO model_version_tags (workspace, name, version, key, value) "
            "VALUES ('default', ?, ?, ?, ?)",
            (name, int(version), sealed.tag, sealed.text),
        )


def asker(server: Server, name: str, version: object) -> Callable[[], int]:
    """Return what asks for the alias champion over one kept connection; it returns the status."""
    connection = HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = json.dumps({"name": name, "alias": "champion", "version": str(version)})

    def ask() -> int:
        connection.request(
            "POST",
            "/api/2.0/mlflow/registered-models/alias",
            body,
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        answer.read()
        return answer.status

    return ask


def logged(client: MlflowClient, size: int) -> tuple[str, str]:
    """Log files of so many bytes as a model; return its id and their digest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "weights").write_bytes(np.random.default_rng(0).bytes(size))
        model = client.create_logged_model("0")
        client.log_model_artifacts(model.model_id, folder)
        return model.model_id, content_sha256(Path(folder))


def latency(calls: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of an allowed move, plain, gated, and with files hashed."""
    with ExitStack() as stack:
        plain, _ = start(stack, gated=False, workers=1)
        gated, _ = start(stack, gated=True, workers=1)
        hashing, other = start(stack, gated=True, workers=1)
        limit = "hash_artifacts: {max_bytes: 1_000_000_000}"
        write_gate(other, f"{default_gate_text()}\n{limit}\n")
        jobs = {}
        for name, server in (("plain", plain), ("gated", gated), ("10 MB hashed", hashing)):
            client = MlflowClient(server.url)
            model_id, digest = logged(client, 10_000_000)
            version = register(client, "model", f"models:/{model_id}", model_id=model_id)
            again = client.create_model_version("model", f"models:/{model_id}", model_id=model_id)
            for number in (version, str(again.version)):
                sealed = verdict_on(subject_of(client, "model", number), model_sha256=digest)
                keep(client, "model", number, sealed)
            jobs[name] = [asker(server, "model", number) for number in (version, again.version)]
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for call in range(calls + 20):
            for name, there_and_back in jobs.items():
                begin = time.perf_counter()
                status = there_and_back[call % 2]()
                if call >= 20:
                    seconds[name].append(time.perf_counter() - begin)
                if status != 200:
                    raise RuntimeError(f"{name}: an allowed move was answered {status}")
    base = np.median(seconds["plain"])
    return {
        name: {
            "median_ms": round(1000 * float(np.median(found)), 2),
            "p95_ms": round(1000 * float(np.quantile(found, 0.95)), 2),
            "ratio": round(float(np.median(found) / base), 2),
        }
        for name, found in seconds.items()
    }


def crowd(server: Server, folder: Path, rounds: int) -> dict[str, object]:
    """Return what 100 requests at once were answered, and whether the alias stayed true."""
    client = MlflowClient(server.url)
    answers: Counter[tuple[str, int]] = Counter()
    wrong, seconds = 0, []
    for round_ in range(rounds):
        name = f"crowd {round_}"
        good = register(client, name)
        bad = str(client.create_model_version(name, SOURCE).version)
        keep(client, name, good, verdict_on(subject_of(client, name, good)))
        genuine = verdict_on(subject_of(client, name, bad), outcome="fail")
        forged = replace(genuine, statement=replace(genuine.statement, outcome="pass"))
        plant(folder, name, bad, forged)
        together = threading.Barrier(100)

        def ask(i: int) -> tuple[str, int]:
            kind = "forged" if i % 3 == 0 else "honest"
            job = asker(server, name, bad if kind == "forged" else good)  # noqa: B023
            together.wait()  # noqa: B023
            return kind, job()

        begin = time.perf_counter()
        with ThreadPoolExecutor(100) as pool:
            found = list(pool.map(ask, range(100)))
        seconds.append(time.perf_counter() - begin)
        answers.update(found)
        aliases = client.get_registered_model(name).aliases
        wrong += sum(status != {"honest": 200, "forged": 403}[kind] for kind, status in found)
        wrong += {k: str(v) for k, v in aliases.items()} != {"champion": good}
    return {
        "requests": 100 * rounds,
        "answers": {f"{kind} {status}": count for (kind, status), count in sorted(answers.items())},
        "wrong": wrong,
        "seconds_per_hundred": round(float(np.median(seconds)), 2),
    }


def forgers(server: Server, folder: Path) -> dict[str, object]:
    """Return how many forgeries were refused as a tag, and how many opened the alias."""
    client = MlflowClient(server.url)
    version, other = register(client, "target"), register(client, "other", "s3://else/where")
    subject = subject_of(client, "target", version)
    stranger = replace(subject_of(client, "other", other), version="2", model_id="m-9")
    genuine = verdict_on(subject)
    offered = {
        **forgeries(genuine, stranger),
        "an unknown key": verdict_on(subject, key=STRANGER),
        "a key without the right": verdict_on(subject, key=ADA),
        "an override by an unknown key": override_for(subject, key=STRANGER),
        "of another version": verdict_on(subject_of(client, "other", other)),
        "of a deleted version": verdict_on(replace(subject, creation_timestamp=1)),
    }
    honest = {
        "expired": verdict_on(subject, issued=now() - DAY, expires=now() - HOUR),
        "under another policy": verdict_on(subject, policy_sha256="f" * 64),
        "from the future": verdict_on(subject, issued=now() + DAY, expires=now() + 2 * DAY),
        "an override for another alias": override_for(subject, alias="production"),
        "an older pass": verdict_on(subject, issued=now() - HOUR),
        "the refusal after it": verdict_on(subject, outcome="fail"),
    }
    ask = asker(server, "target", version)
    kept, opened = [], []
    for what, sealed in offered.items():
        try:
            keep(client, "target", version, sealed)
            kept.append(what)
        except MlflowException:
            plant(folder, "target", version, sealed)
        if ask() != 403:
            opened.append(what)
    for what, sealed in honest.items():
        keep(client, "target", version, sealed)
        if what != "an older pass" and ask() != 403:
            opened.append(what)
    return {
        "forged": len(offered),
        "refused_as_tags": len(offered) - len(kept),
        "genuine_but_not_enough": len(honest) - 1,
        "opened_the_alias": opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    facts = machine("mlflow", "cryptography", "sqlalchemy")
    print(line(facts))
    results: dict[str, object] = {"machine": facts, "latency": latency(arguments.calls)}
    print(f"latency: {results['latency']}", flush=True)
    with ExitStack() as stack:
        server, folder = start(stack, gated=True, workers=2)
        results["crowd"] = crowd(server, folder, arguments.rounds)
        print(f"crowd: {results['crowd']}", flush=True)
        results["forgeries"] = forgers(server, folder)
        print(f"forgeries: {results['forgeries']}")
    write(arguments.json, results)


if __name__ == "__main__":
    main()
