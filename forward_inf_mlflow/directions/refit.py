"""Refit: what is asked of a training function where no query can move the model itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from forward_inf_mlflow.directions.moves import check_settings


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Train with a group of queries added to the rows, and without it, by the same seed.

    Influence is how much a row's loss falls from the one model to the other over the copies that
    were added: nats per added copy. What else the seed draws is noise, so the mean over seeds is
    taken; seeds are added until its reliability reaches ``reliable``, or there are ``most_seeds``,
    or it is plain that these will not lift it over the ``floor``. Below the floor, where chance
    decides more of the order than the rows do, the scores are refused.

    Cost: a fit a seed for the control, which all groups share, and one for each group.

    Attributes:
        least_seeds: At least two, or nobody could say whether they agree.
        most_seeds: Bounds them.
        reliable: Wished reliability.
        floor: Least reliability of scores that are shown.
        singles: Rows that are asked about one by one, at most.
        seed: The first one.
    """

    least_seeds: int = 2
    most_seeds: int = 5
    reliable: float = 0.9
    floor: float = 0.5
    singles: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ForwardInfError: One is out of its range.
        """
        check_settings(self, least_seeds=2, most_seeds=2, singles=0, reliable=0, floor=0)

    def hopeless(self, reliability: float, seeds: int) -> bool:
        """Return whether even ``most_seeds`` would stay below the floor (Spearman-Brown)."""
        one = reliability / (seeds - (seeds - 1) * reliability)
        most = self.most_seeds
        return most * one / (1 + (most - 1) * one) < self.floor

    def fits(self, singles: int, parts: int) -> int:
        """Return how many fits that takes at most.

        Controls, all queries together, single rows, the parts of the queries that the answers are
        asked with, and the rows without those that leaked.
        """
        return self.most_seeds * (2 + singles) + self.least_seeds * (parts + 1)

    def describe(self) -> dict[str, object]:
        """Return the settings that repeat these refits."""
        return {"direction": "refit", **asdict(self)}
