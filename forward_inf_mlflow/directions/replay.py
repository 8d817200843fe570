"""Replay: go on training with the queries added, and once without them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from forward_inf_mlflow.directions.moves import (
    MoveAlong,
    Moves,
    Parameters,
    Point,
    Sign,
    Tangent,
    at_rest,
    check_settings,
    loss_gradient,
    norm,
    usable,
)
from forward_inf_mlflow.directions.products import GaussNewton, Layout
from forward_inf_mlflow.directions.reliability import (
    COMPARED_ROWS,
    read_some,
    reliability_of,
)
from forward_inf_mlflow.directions.spectrum import largest_eigenvalue, mean_eigenvalue
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors, sample
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work


@dataclass(frozen=True, kw_only=True)
class Replay:
    """T more steps on training batches with w times the query's loss added, and T without.

    Both runs take the same batches from the same start, so that they differ by the query alone;
    the run without it, the control, is made once a seed and shared by all groups. Influence is how
    much a row's loss falls from control to treated, along their difference, over the ``w n`` copies
    of the query that were added to n rows: nats per added copy. Positive: a proponent.

    With momentum b and rate r this is an early-stopped inverse of the curvature, with a damping of
    about ``(1 - b) / (T r)``. So r is a small share of one over the largest Gauss-Newton eigenvalue
    and T follows from the wished damping (the rule of `Curvature`). w is not small: two runs that
    differ infinitely little drift apart along what the network's kinks and noise amplify, and the
    query drowns in that (digits, LDS at w = .1, .01, .001: .69, .62, .42, in double precision too),
    while from .1 to 3 it hardly matters. Seeds are added until the scores' reliability reaches
    ``reliable`` or there are ``most_seeds``.

    Cost in forward-equivalents: about 3 T (batch + query rows) for every group and seed, and
    3 T batch for every control. Then a sweep for every group and seed, and one for every control.
    Source: the mirrored hypothesis at its word (Ko et al., CVPR 2024); further training as the
    truth for a final model: FiMODA (NeurIPS 2025).

    Attributes:
        damping: In nats per row; None for ``multiple`` times the mean Gauss-Newton eigenvalue.
        multiple: See there.
        penalty: Weight decay of the training objective.
        rate: Learning rate as a share of one over the largest eigenvalue.
        momentum: b.
        batch: Rows of a step.
        most_steps: Bounds T.
        weight: w, relative to the mean loss of the training rows.
        reliable: Wished reliability.
        most_seeds: Bounds the seeds.
        rows: Training rows to draw batches from, at most.
        relative_size: Length of a step read by finite difference over the parameters' norm.
        sign: Which way such a step goes.
        seed: The first one.
    """

    damping: float | None = None
    multiple: float = 3.0
    penalty: float = 0.0
    rate: float = 0.025
    momentum: float = 0.9
    batch: int = 64
    most_steps: int = 1000
    weight: float = 0.1
    reliable: float = 0.9
    most_seeds: int = 4
    rows: int = 10_000
    relative_size: float = 0.0003
    sign: Sign = "up"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ForwardInfError: One is out of its range.
        """
        check_settings(
            self,
            ("rate", "weight", "relative_size"),
            **dict.fromkeys(("damping", "multiple", "penalty", "momentum", "most_steps"), 0),
            **dict.fromkeys(("batch", "most_seeds", "rows"), 1),
        )
        if not self.momentum < 1:
            raise ForwardInfError(f"momentum must be below 1, not {self.momentum}")

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return one move per query group and seed, seed by seed.

        Raises:
            ModelError: No parameter can be moved, or none of them changes a training row's loss.
            ForwardInfError: Training diverges.
        """
        base = at_rest(module)
        rows, copies = usable(base, task, train, self.rows, self.seed)
        rate, steps, facts = self._pace(base, task, rows, work)
        run = _Run(base, task, rows, self, rate, steps)

        tangents: list[Tangent] = []
        scores: list[np.ndarray] = []
        reliability = float("nan")
        compared = sample(rows, COMPARED_ROWS, self.seed)
        for seed in range(self.seed, self.seed + self.most_seeds):
            control = run.control(seed, work)
            new = []
            for g, group in enumerate(groups):
                treated = run.treated(seed, group, f"replay/{seed}/{g}", work)
                along = {
                    name: (p - control.parameters[name]) / (self.weight * copies)
                    for name, p in treated.items()
                }
                new.append(Tangent(control, along))
            tangents += new
            scores.append(
                read_some(new, task, compared, relative_size=self.relative_size, sign=self.sign)
            )
            if len(scores) > 1:
                reliability = reliability_of(np.stack(scores))
                if reliability >= self.reliable:
                    break
        facts |= {"seeds": len(scores), "reliability": reliability}
        coefficients = np.tile(np.eye(len(groups)), len(scores)) / len(scores)
        return MoveAlong(base, tangents, coefficients, self.relative_size, self.sign, facts)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "replay", **asdict(self)}

    def _pace(
        self, base: Point, task: Task, rows: Tensors, work: Work
    ) -> tuple[float, int, dict[str, object]]:
        """Return learning rate and number of steps, from the spectrum of some rows."""

        def make() -> Arrays:
            some = sample(rows, 2000, self.seed)
            matrix = GaussNewton(base, task, some)
            try:
                return {
                    "largest": np.array(largest_eigenvalue(matrix, self.seed)),
                    "mean": np.array(mean_eigenvalue(matrix, self.seed)),
                }
            except (RuntimeError, NotImplementedError) as error:
                why = " ".join(str(error).split())[:120]
                raise ModelError(
                    f"this model has no forward mode, which replay's rate needs ({why}): take "
                    "another direction"
                ) from error

        spectrum = work.once("spectrum", make)
        largest, mean = float(spectrum["largest"]), float(spectrum["mean"])
        damping = self.multiple * mean if self.damping is None else self.damping
        if largest + self.penalty <= 0:
            raise ModelError(
                "no training row's loss changes with the model's parameters, so training cannot go "
                "on: log a model that is trained"
            )
        rate = self.rate / (largest + self.penalty)
        wished = (1 - self.momentum) / (rate * damping) if damping else math.inf
        steps = round(min(max(1.0, wished), self.most_steps))
        facts: dict[str, object] = {
            "mean_eigenvalue": mean,
            "largest_eigenvalue": largest,
            "rate_used": rate,
            "steps": steps,
            # More than was wished where most_steps are too few; with the penalty.
            "damping_used": (1 - self.momentum) / (rate * max(1, steps)) + self.penalty,
        }
        return rate, steps, facts


@dataclass(frozen=True)
class _Run:
    """Training that goes on from a point."""

    base: Point
    task: Task
    rows: Tensors
    settings: Replay
    rate: float
    steps: int

    def control(self, seed: int, work: Work) -> Point:
        """Return the point that training without any query leads to."""
        found = self._kept(f"replay/{seed}/control", work, seed, None)
        if not math.isfinite(norm(found)):
            raise ForwardInfError("training that goes on diverges: take a smaller rate")
        return Point(self.base.module, found)

    def treated(self, seed: int, group: Tensors, name: str, work: Work) -> Parameters:
        """Return the parameters that training with a group of queries leads to."""
        return self._kept(name, work, seed, group)

    def _kept(self, name: str, work: Work, seed: int, group: Tensors | None) -> Parameters:
        layout = Layout(self.base.parameters)

        def make() -> Arrays:
            return {"theta": layout.join(self.train(seed, group)).cpu().numpy()}

        theta = torch.as_tensor(work.once(name, make)["theta"])
        return layout.split(theta.to(layout.device))

    def train(self, seed: int, group: Tensors | None) -> Parameters:
        """Return the parameters after the steps; the seed alone decides the batches."""
        settings = self.settings
        theta = {name: p.clone() for name, p in self.base.parameters.items()}
        velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.steps):
            index = torch.randint(len(self.rows), (settings.batch,), generator=generator)
            point = Point(self.base.module, theta)
            pull = loss_gradient(point, self.task, self.rows.take(index.numpy()), asked=False)
            query = None if group is None else loss_gradient(point, self.task, group)
            for name, p in theta.items():
                step = pull[name] + settings.penalty * p
                if query is not None:
                    step += settings.weight * query[name]
                velocity[name].mul_(settings.momentum).add_(step)
                theta[name] = p - self.rate * velocity[name]
        return theta
