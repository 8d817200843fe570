"""Classification: cross-entropy of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forward_inf_mlflow.task import Batch, Readout, Task


def drawn_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``softmax(logits) - onehot(class drawn from it)``, shaped like the logits."""
    p = torch.softmax(logits, -1)
    flat = p.reshape(-1, p.shape[-1])
    classes = torch.multinomial(flat.cpu(), 1, generator=generator).to(flat.device)
    return (flat - torch.zeros_like(flat).scatter_(1, classes, 1.0)).view_as(logits)


class Classification(Task):
    """One label per row. Outputs: logits ``(B, K)``. Targets: class indices ``(B,)``.

    Loss: cross-entropy in nats. Margin: the given class's log-odds ``log p / (1 - p)`` in nats (the
    output function of TRAK, Park et al., ICML 2023).

    The loss is what is read, of a model that knows its rows by heart too: measured on the digits
    (99.6 % train accuracy, half of the rows above p = .99) it has LDS .39, the margin .26.
    """

    name = "classification"

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ``-log softmax(outputs)[target]``, ``(B,)``."""
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the probabilities less the one-hot code of a label drawn from them."""
        return drawn_classes(outputs, generator)

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the given class's logit minus the log-sum-exp of the others, ``(B,)``."""
        given = outputs.gather(1, targets[:, None])
        others = outputs.scatter(1, targets[:, None], -torch.inf).logsumexp(1)
        return given[:, 0] - others

    def skill(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the accuracy's way from always guessing the largest class (0) to perfect (1)."""
        right = float((outputs.argmax(1) == targets).double().mean())
        guess = float(targets.bincount().max()) / len(targets)
        return (right - guess) / (1 - guess) if guess < 1 else 0.0


@dataclass(frozen=True)
class Weighted(Classification):
    """Classification whose training loss weighs each row by its class.

    The weights belong to the objective: to its curvature, to what one more copy of a query adds,
    and to how half-models are trained. What is read of a row stays its own surprise in nats.

    Attributes:
        weights: ``(K,)`` what a row of each class weighs.
    """

    weights: tuple[float, ...] = ()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weight of the target's class times ``-log softmax(outputs)[target]``."""
        return self._weight(outputs, targets) * super().loss(outputs, targets)

    def drawn(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return the residuals of a drawn label times the root of the row's weight."""
        root = self._weight(outputs, targets).sqrt()
        return root[:, None] * super().drawn(outputs, targets, generator)

    def readout_of(self, outputs: Tensor, batch: Batch) -> Readout:
        """Read what the model answered, without weights."""
        return Classification().readout_of(outputs, batch)

    def _weight(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor(self.weights, dtype=outputs.dtype, device=outputs.device)[targets]
