"""Curvature: what retraining with the queries would do, by the inverse Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import isqrt
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from forward_inf_mlflow.directions.fisher import fisher
from forward_inf_mlflow.directions.inverse import (
    ByConjugateGradients,
    ByFisher,
    ByMatrix,
    BySketch,
    Inverse,
    reciprocal,
)
from forward_inf_mlflow.directions.moves import (
    MoveAlong,
    Moves,
    Point,
    Sign,
    Tangent,
    at_rest,
    check_settings,
    loss_gradient,
    usable,
)
from forward_inf_mlflow.directions.products import GaussNewton, Layout
from forward_inf_mlflow.directions.reliability import (
    COMPARED_GROUPS,
    COMPARED_ROWS,
    read_some,
    reliability_of,
)
from forward_inf_mlflow.directions.spectrum import Sketch
from forward_inf_mlflow.errors import ForwardInfError, ModelError
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tensors import Stream, Tensors, sample
from forward_inf_mlflow.work import KEEP_NOTHING, Arrays, Work

#: Groups that are solved, and kept, at once.
_BLOCK = 32
#: Groups that have moves of their own at most, and eigenvectors whose moves more groups share.
_OWN, _SHARED = 1024, 1024
#: Parameters whose whole matrix is cheaper than anything else.
DENSE = 2500
#: Eigenvectors that must fit into memory, or they say next to nothing.
_TELLING = 16
#: Gradients drawn of one row, at most; and the fewest in all that are worth an inverse.
_DRAWS, _FEWEST = 8, 256


Solver = Literal["auto", "dense", "fisher", "sketch", "cg"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What all groups of queries have in common.

    Attributes:
        base: The model as it was.
        rows: The training rows that stand for all.
        copies: How many of all rows are usable.
        inverse: Of the curvature; made when it is first asked.
        note: Why it is another one than was wished for; None if it is not.
    """

    base: Point
    rows: Tensors
    copies: float
    inverse: Inverse
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Newton's step for one added copy of a query: ``theta - (G + d I)^-1 g / n``.

    g is the gradient of a query group's mean loss, G the Gauss-Newton matrix of the mean training
    loss (with the objective's penalty), n the number of training rows and d the damping. Influence
    is the influence function ``g_row (G + d I)^-1 g / n``: how much a row's loss falls when one
    copy of the query is added to the training set, in nats. Positive: a proponent.

    Four ways to the inverse, for some training rows that stand for all:

    - "dense": the matrix itself, for few parameters. Cost in forward-equivalents of these rows:
      about 3 P, once.
    - "fisher": a few drawn gradients a row, held; exact in their space. About 2 + 2 a draw,
      once.
    - "sketch": the ``rank`` leading eigenvectors by products (jvp and vjp) alone, and the mean of
      what may lie beyond them: little memory. About 7 (rank + 10), once.
    - "cg": conjugate gradients by products: the exact inverse. About 3.5 an iteration and group.

    "dense" and "fisher" leave out what layers have in common (the blocks beside the diagonal),
    which some thousand rows do not determine: it raises the LDS of an image network from .39 to
    .41, that of the digits network from .68 to .70, and makes both insensitive to the damping.

    Each group has a move of its own, coefficient 1, up to 1,024 groups whose vectors fit into
    memory. More share moves along as many leading eigenvectors u, with coefficients
    ``u . g / (eigenvalue + d)``; what lies outside their span is left out, and the facts say which
    share of the groups' ``g (G + d I)^-1 g`` is "held". Of a sketch there are ``rank`` only.

    What is drawn for "fisher" is a part of all that could be: the facts say how reliable the scores
    are, from two halves of the gradients (Spearman-Brown).

    Damping, where none is given: ``multiple`` times the mean eigenvalue of G, its trace over the
    number of eigenvalues that can be positive. Much less trusts directions that a few thousand rows
    do not determine.

    Source: influence functions (Koh and Liang, ICML 2017) by Gauss-Newton (Martens, ICML 2010),
    read by forward passes (Ko et al., CVPR 2024).

    Attributes:
        damping: d in nats per row; None for the rule.
        multiple: Of the mean eigenvalue, for the rule.
        penalty: What the training objective adds to every parameter's second derivative, in nats
            per row: weight decay, or 1 / (C n) of a LogisticRegression.
        solver: One of the four; "auto" takes "dense" for up to 2,500 parameters, else "fisher"
            where enough gradients fit into memory and the model can be differentiated row by row,
            else "sketch".
        by_layer: Whether "dense" and "fisher" take each layer by itself.
        gradients: How many are drawn for "fisher", spread over the rows; fewer where they would
            not fit into memory or take long to multiply.
        rank: Of the sketch.
        rows: At most so many training rows, drawn at random, stand for all in G.
        iterations: Most iterations of "cg"; it stops at a relative residual of ``tolerance``.
        tolerance: See there.
        memory: Bytes that the moves of all groups, or the gradients of all rows, may take.
        multiplications: That the inner products of all gradients may take.
        relative_size: Length of a step read by finite difference over the parameters' norm.
        sign: Which way such a step goes.
        seed: Of the rows, the draws and the sketch.
    """

    damping: float | None = None
    multiple: float = 1.0
    penalty: float = 0.0
    solver: Solver = "auto"
    by_layer: bool = True
    gradients: int = 4000
    rank: int = 64
    rows: int = 2000
    iterations: int = 100
    tolerance: float = 1e-3
    memory: int = 2**30
    multiplications: int = 2**40
    relative_size: float = 0.0003
    sign: Sign = "up"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ForwardInfError: One is out of its range.
        """
        at_least_one = dict.fromkeys(
            ("gradients", "rank", "rows", "iterations", "memory", "multiplications"), 1
        )
        check_settings(
            self, ("tolerance", "relative_size"), damping=0, multiple=0, penalty=0, **at_least_one
        )
        if self.solver not in get_args(Solver):
            raise ForwardInfError(
                f"solver must be one of {', '.join(get_args(Solver))}, not {self.solver}"
            )

    def plan(
        self,
        module: nn.Module,
        task: Task,
        groups: Sequence[Tensors],
        train: Stream,
        work: Work = KEEP_NOTHING,
    ) -> Moves:
        """Return one move per group, or fewer for all.

        Raises:
            ModelError: Nothing can be moved, or rows cannot be differentiated as "fisher" needs it.
            ForwardInfError: There is no damping, and the solver needs one.
        """
        return self.moves(self.prepare(module, task, train, work), task, groups, work)

    def prepare(
        self, module: nn.Module, task: Task, train: Stream, work: Work = KEEP_NOTHING
    ) -> Prepared:
        """Return the inverse that all groups share; nothing costly is done before it is asked.

        Raises:
            ModelError: See `plan`.
        """
        base = at_rest(module)
        rows, copies = usable(base, task, train, self.rows, self.seed)
        inverse, note = self._inverse(base, task, rows, work)
        return Prepared(base, rows, copies, inverse, note)

    def moves(
        self,
        prepared: Prepared,
        task: Task,
        groups: Sequence[Tensors],
        work: Work = KEEP_NOTHING,
        *,
        compared: bool = True,
    ) -> Moves:
        """Return one move per group, or fewer for all, by an inverse that is there.

        Args:
            prepared: From `prepare`, of these settings.
            task: The loss of a row.
            groups: What is asked about.
            work: Where finished pieces are kept.
            compared: Whether the facts say how reliable "fisher" is, for two more inverses.

        Raises:
            ForwardInfError: See `plan`.
        """
        base, rows, copies = prepared.base, prepared.rows, prepared.copies
        inverse, note, layout = prepared.inverse, prepared.note, Layout(base.parameters)
        kept = work.once("spectrum", lambda: {"mean": np.array(inverse.mean_eigenvalue())})
        mean = float(kept["mean"])
        added = self.multiple * mean if self.damping is None else self.damping
        damping = added + self.penalty
        if damping == 0 and inverse.name != "dense":
            raise ForwardInfError(
                f"the solver '{inverse.name}' needs a damping or a penalty above 0: give one, or "
                "take the solver 'dense'"
            )
        facts: dict[str, object] = {
            "solver": inverse.name,
            "mean_eigenvalue": mean,
            "damping_used": damping,  # with the penalty
        }
        if note:
            facts["note"] = note

        def gradients(some: Sequence[Tensors]) -> Tensor:
            found = [layout.join(loss_gradient(base, task, group)) for group in some]
            return torch.stack(found, 1)

        def tangent(vector: Tensor) -> Tangent:
            return Tangent(base, layout.split(vector / -copies))

        def solved(some: Sequence[Tensors]) -> Arrays:
            vectors = inverse.solve(damping, gradients(some))
            return {"vectors": vectors.T.contiguous().cpu().numpy()}

        if self._shared(inverse.name, len(groups), layout.size):
            rank = self._shared_rank(inverse.name, layout.size)
            found = _kept_sketch(work, layout, lambda: inverse.leading(rank))
            u, rates = found.vectors, reciprocal(found.values, damping)
            products = [rates * (u.T @ gradients([group]))[:, 0].double() for group in groups]
            coefficients = torch.stack(products).cpu().numpy()
            tangents = [tangent(vector) for vector in u.T]
            some = gradients(groups[:: -(-len(groups) // _BLOCK)])
            within = (rates[:, None] * (u.T @ some).double().square()).sum()
            whole = (some * inverse.solve(damping, some)).double().sum()
            facts |= {"rank": len(tangents), "held": float(within / whole)}
        else:
            coefficients, tangents = np.eye(len(groups)), []
            for start in range(0, len(groups), _BLOCK):
                block = groups[start : start + _BLOCK]
                vectors = work.once(f"moves/{start:05}", partial(solved, block))["vectors"]
                on_device = torch.as_tensor(vectors).to(layout.device)
                tangents += [tangent(vector) for vector in on_device]
        if compared and isinstance(inverse, ByFisher):

            def drawn_anew() -> Arrays:
                some = gradients(groups[:COMPARED_GROUPS])
                seen = sample(rows, COMPARED_ROWS, self.seed)
                halves = [
                    read_some(
                        [tangent(v) for v in inverse.half(which).solve(damping, some).T],
                        task,
                        seen,
                        relative_size=self.relative_size,
                        sign=self.sign,
                    )
                    for which in (0, 1)
                ]
                return {"reliability": np.array(reliability_of(np.stack(halves)))}

            facts["reliability"] = float(work.once("reliability", drawn_anew)["reliability"])
        return MoveAlong(base, tangents, coefficients, self.relative_size, self.sign, facts)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these moves."""
        return {"direction": "curvature", **asdict(self)}

    def outlook(self, parameters: int, rows: int, groups: int) -> tuple[str, int]:
        """Return the solver that "auto" will take, and how many moves there will be."""
        solver, rows = self.solver, min(rows, self.rows)
        if solver == "auto":
            drawn = self._drawn(parameters) >= min(_FEWEST, rows)
            solver = "dense" if parameters <= DENSE else "fisher" if drawn else "sketch"
        shared = self._shared(solver, groups, parameters)
        return solver, self._shared_rank(solver, parameters) if shared else groups

    def fits(self, parameters: int) -> bool:
        """Say whether enough of the curvature fits into memory to be worth anything."""
        return self._vectors(parameters) >= min(_TELLING, parameters)

    def cost(self, parameters: int, rows: int, groups: int) -> int:
        """Return the forward-equivalents that the inverse takes, without the queries' gradients."""
        solver, _ = self.outlook(parameters, rows, groups)
        rows = min(rows, self.rows)
        if solver == "fisher":
            drawn = min(self._drawn(parameters), _DRAWS * rows)
            return 2 * min(rows, drawn) + 2 * drawn
        products = {
            "dense": parameters,
            "sketch": 2 * (self._rank(parameters) + 10),
            "cg": groups * min(self.iterations, 30),
        }[solver]
        return round(3.5 * products * rows)

    def _inverse(
        self, base: Point, task: Task, rows: Tensors, work: Work
    ) -> tuple[Inverse, str | None]:
        """Return the way that the settings name, or that memory and model allow."""
        layout, note = Layout(base.parameters), None
        matrix = GaussNewton(base, task, rows)
        layers = layout.layers if self.by_layer else [slice(0, layout.size)]
        solver, _ = self.outlook(layout.size, len(rows), 1)
        why = None
        if solver != "fisher" and (why := _no_products(base, task, rows)) and self.solver != "auto":
            raise ModelError(
                f"this model has no forward mode, which the solver '{solver}' needs ({why}): take "
                "the solver 'fisher', or another direction"
            )
        if solver == "dense" and why is None:
            return ByMatrix(matrix, layers), None
        if solver == "cg":
            return ByConjugateGradients(matrix, self.iterations, self.tolerance, self.seed), None
        if solver == "fisher" or why is not None:
            most = self._drawn(layout.size)
            some = sample(rows, most, self.seed)
            draws = max(1, min(_DRAWS, most // len(some)))
            why = _refused(base, task, some)
            if why is None:
                make = partial(fisher, base, task, some, draws=draws, seed=self.seed)
                return ByFisher(make, layers, min(layout.size, matrix.rank_bound), draws), None
            if self.solver == "fisher":
                raise ModelError(
                    f"this model cannot be differentiated row by row ({why}): take the solver "
                    "'sketch'"
                )
            if (no_products := _no_products(base, task, rows)) is not None:
                raise ModelError(
                    f"this model can be differentiated neither row by row ({why}) nor in forward "
                    f"mode ({no_products}): take the direction 'gradient'"
                )
            note = f"curvature by products, because rows cannot be differentiated alone ({why})"
        keep = partial(_kept_sketch, work, layout)
        return BySketch(matrix, keep, self._rank(layout.size), self.seed), note

    def _drawn(self, parameters: int) -> int:
        """Return how many gradients fit into memory and can be multiplied soon."""
        soon = isqrt(self.multiplications // parameters)
        return max(1, min(self.gradients, self._vectors(parameters), soon))

    def _rank(self, parameters: int) -> int:
        """Return the rank of a sketch that fits into memory."""
        return min(self.rank, parameters, max(8, self._vectors(parameters)))

    def _shared_rank(self, solver: str, parameters: int) -> int:
        """Return how many eigenvectors many groups share."""
        if solver in ("sketch", "cg"):
            return self._rank(parameters)
        return min(_SHARED, parameters, max(8, self._vectors(parameters)))

    def _shared(self, solver: str, groups: int, parameters: int) -> bool:
        """Say whether groups are too many for moves of their own."""
        large = groups > max(self._vectors(parameters), self._shared_rank(solver, parameters))
        return groups > _OWN or large

    def _vectors(self, parameters: int) -> int:
        """Return how many float32 vectors of so many parameters fit into memory."""
        return self.memory // (4 * parameters)


def _refused(base: Point, task: Task, rows: Tensors) -> str | None:
    """Try the first row; return in a few words why its gradient cannot be drawn."""
    try:
        fisher(base, task, rows.part(0, 1), draws=1, seed=0)
    except NotImplementedError as error:
        return str(error)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return None


def _no_products(base: Point, task: Task, rows: Tensors) -> str | None:
    """Try the first row; return in a few words why no product with its curvature can be had."""
    layout = Layout(base.parameters)
    try:
        first = GaussNewton(base, task, rows.part(0, 1))
        first @ torch.ones(layout.size, 1, dtype=layout.dtype, device=layout.device)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return None


def _kept_sketch(work: Work, layout: Layout, make: Callable[[], Sketch]) -> Sketch:
    def arrays() -> Arrays:
        found = make()
        return {"vectors": found.vectors.cpu().numpy(), "values": found.values.cpu().numpy()}

    kept = work.once("sketch", arrays)
    vectors, values = (torch.as_tensor(kept[name]) for name in ("vectors", "values"))
    return Sketch(vectors.to(layout.device), values.to(layout.device))
