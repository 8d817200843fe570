from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forward_inf_mlflow.errors import DataError, ForwardInfError, ModelError
from forward_inf_mlflow.screen import candidates, last_layer, recall
from forward_inf_mlflow.task import Task
from forward_inf_mlflow.tasks import CausalLM, Classification, Denoising, Regression
from forward_inf_mlflow.tensors import Tensors

D, K, M, N = 6, 4, 9, 70


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


def rows(inputs: Tensor, targets: Tensor, batch_size: int = 16) -> Tensors:
    return Tensors(inputs, targets, torch.device("cpu"), batch_size)


def labelled(n: int, seed: int = 0) -> Tensors:
    return rows(data(n, D, seed=seed), torch.arange(n) % K)


def sides(*tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and residuals of queries and of training rows, sequences if tokens are given."""
    return (
        data(M, *tokens, D, seed=1),
        data(M, *tokens, K, seed=2),
        data(N, *tokens, D, seed=3),
        data(N, *tokens, K, seed=4),
    )


def ranked(scores: Tensor, count: int) -> Tensor:
    """The obvious reference: a stable sort of all scores."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :count]


def gradients(module: nn.Module, task: Task, data: Tensors, parameter: Tensor) -> Tensor:
    """A backward pass per row."""
    found = []
    for i in range(len(data)):
        loss = task.loss(module(data.inputs[i : i + 1]), data.targets[i : i + 1]).sum()
        found.append(torch.autograd.grad(loss, parameter)[0].flatten())
    return torch.stack(found)


def last(outputs: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, outputs, bias=bias)).eval()


def test_three_rows_worked_by_hand() -> None:
    # Products 1 * 1, 3 * 1 and 2 * -1; cosines 1, 1 and -1, the first two a tie.
    query = (torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    train = (torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([[1.0], [1.0], [-1.0]]))
    assert candidates(*query, *train, count=3, cosine=False).tolist() == [[1, 0, 2]]
    assert candidates(*query, *train, count=3).tolist() == [[0, 1, 2]]


def test_for_a_softmax_model_the_screen_is_the_exact_gradient_product() -> None:
    torch.manual_seed(0)
    module, task = nn.Linear(D, K, bias=False), Classification()
    queries, train = labelled(M, 1), labelled(N)
    asked, known = (gradients(module, task, d, module.weight) for d in (queries, train))
    found = candidates(
        *last_layer(module, task, queries),
        *last_layer(module, task, train),
        count=N,
        cosine=False,
    )
    exact = asked @ known.T
    torch.testing.assert_close(exact.gather(1, found), exact.sort(1, descending=True).values)


@pytest.mark.parametrize(
    ("task", "targets", "outputs"),
    [(Classification(), torch.arange(N) % K, K), (Regression(), data(N), 1)],
    ids=["classes", "numbers"],
)
def test_features_times_residuals_are_the_gradient_of_the_last_layer(
    task: Task, targets: Tensor, outputs: int
) -> None:
    module, train = last(outputs), rows(data(N, D), targets)
    features, residuals = last_layer(module, task, train)
    products = (residuals[:, :, None] * features[:, None, :]).flatten(1)
    torch.testing.assert_close(products, gradients(module, task, train, module[2].weight))


def test_residuals_of_classes_are_softmax_less_one_hot() -> None:
    module, train = last(K), labelled(N)
    _, residuals = last_layer(module, Classification(), train)
    expected = torch.softmax(module(train.inputs), 1) - nn.functional.one_hot(train.targets, K)
    torch.testing.assert_close(residuals, expected.detach())
    assert residuals.dtype == torch.float32
    assert not residuals.requires_grad


def test_residuals_of_queries_are_those_of_what_is_asked() -> None:
    class Asked(Classification):
        def query_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return 3 * self.loss(outputs, targets)

    module, train = last(K), labelled(N)
    plain, asked = (last_layer(module, Asked(), train, queries=q)[1] for q in (False, True))
    torch.testing.assert_close(asked, 3 * plain)


def test_an_exported_model_has_the_same_last_layer() -> None:
    module, train = last(K), labelled(N)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(module, (data(4, D),), dynamic_shapes=({0: batch},)).module()
    for found, expected in zip(
        last_layer(exported, Classification(), train),
        last_layer(module, Classification(), train),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


def test_sequences_have_features_and_residuals_for_each_token() -> None:
    torch.manual_seed(0)
    module, task = nn.Sequential(nn.Embedding(K, D), nn.Linear(D, K, bias=False)), CausalLM()
    ids = torch.arange(5 * 3).reshape(5, 3) % K
    targets = torch.where(torch.arange(3) == 2, -100, ids.roll(1, 1))
    train = rows(ids, targets, batch_size=2)
    features, residuals = last_layer(module, task, train)
    assert features.shape == (5, 3, D)
    torch.testing.assert_close(features, module[0](ids).detach())
    assert (residuals[:, 2] == 0).all()
    products = torch.einsum("nlc,nld->ncd", residuals, features).flatten(1)
    torch.testing.assert_close(products, gradients(module, task, train, module[1].weight))


@pytest.mark.parametrize("cosine", [True, False], ids=["cosine", "product"])
@pytest.mark.parametrize("block", [1, 7, 2048])
def test_candidates_are_the_first_of_all_scores_for_any_block(cosine: bool, block: int) -> None:
    arguments = sides()
    parts = arguments
    if cosine:
        parts = tuple(nn.functional.normalize(x, dim=-1) for x in arguments)
    scores = (parts[0] @ parts[2].T) * (parts[1] @ parts[3].T)
    found = candidates(*arguments, count=12, cosine=cosine, block=block)
    assert torch.equal(found, ranked(scores, 12))


@pytest.mark.parametrize("block", [1, 11, 2048])
def test_a_querys_tokens_each_ask_for_their_best_match_in_a_row(block: int) -> None:
    query_h, query_r, train_h, train_r = sides(3)
    query_r[:, 2] = 0  # padding on either side, whatever its features
    train_r[::2, 1:] = 0
    scores = torch.zeros(M, N)
    for i in range(M):
        for j in range(N):
            heard = [t for t in range(3) if train_r[j, t].any()]
            for asked in range(2):
                scores[i, j] += max(
                    (query_h[i, asked] @ train_h[j, t]) * (query_r[i, asked] @ train_r[j, t])
                    for t in heard
                )
    found = candidates(query_h, query_r, train_h, train_r, count=20, cosine=False, block=block)
    assert torch.equal(found, ranked(scores, 20))


@pytest.mark.parametrize("cosine", [True, False], ids=["cosine", "product"])
def test_more_padding_changes_nothing(cosine: bool) -> None:
    arguments = sides(3)
    longer = [torch.cat([x, data(len(x), 2, x.shape[2])], 1) for x in arguments]
    longer[1][:, 3:], longer[3][:, 3:] = 0, 0
    found = candidates(*longer, count=20, cosine=cosine)
    assert torch.equal(found, candidates(*arguments, count=20, cosine=cosine))


def test_a_row_where_no_token_counts_has_no_influence() -> None:
    query_h, query_r, train_h, train_r = (torch.ones(n, 2, 1) for n in (1, 1, 3, 3))
    train_r[1], train_r[2] = 0, -1
    found = candidates(query_h, query_r, train_h, train_r, count=3)
    assert found.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("block", [1, 3, 2048])
def test_ties_stay_in_row_order(block: int) -> None:
    query = (torch.ones(2, 1), torch.tensor([[1.0], [-1.0]]))
    train = (torch.ones(8, 1), torch.tensor([[1.0], [0.0], [-0.0], [1], [-1], [0], [1], [-1]]))
    found = candidates(*query, *train, count=8, block=block)
    assert found.tolist() == [[0, 3, 6, 1, 2, 5, 4, 7], [4, 7, 1, 2, 5, 0, 3, 6]]


def test_a_row_that_is_not_a_number_comes_last() -> None:
    arguments = sides()
    arguments[2][5] = torch.nan
    found = candidates(*arguments, count=N)
    assert (found[:, -1] == 5).all()


def test_what_is_known_by_heart_is_compared_by_direction() -> None:
    # Residuals of 1e-30: their squares are nothing in float32.
    query_h, query_r, train_h, train_r = sides()
    tiny = candidates(query_h, query_r * 1e-30, train_h, train_r * 1e-30, count=10)
    assert torch.equal(tiny, candidates(query_h, query_r, train_h, train_r, count=10))


def test_a_copy_of_the_query_is_its_first_candidate() -> None:
    train = labelled(N)
    features, residuals = last_layer(last(K), Classification(), train)
    found = candidates(features[:M], residuals[:M], features, residuals, count=3)
    assert found[:, 0].tolist() == list(range(M))


def test_no_more_candidates_than_rows() -> None:
    found = candidates(*sides(), count=N + 5)
    assert found.shape == (M, N)
    assert found.dtype == torch.int64
    assert (found.sort(1).values == torch.arange(N)).all()


def test_recall_is_the_share_of_exact_rows_among_the_candidates() -> None:
    found = torch.tensor([[4, 1, 7], [0, 2, 3]])
    assert recall(found, torch.tensor([[7, 4], [9, 2]])) == 0.75
    assert recall(found, found) == 1
    assert recall(found, torch.tensor([[8], [8]])) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: torch.zeros(M)}, r"\(9,\)"),
        ({1: torch.zeros(M + 1, K)}, r"\(10, 4\)"),
        ({2: torch.zeros(N, D + 1)}, "7"),
        ({3: torch.zeros(N, K + 1)}, "5"),
    ],
)
def test_shapes_that_do_not_fit_are_said_in_one_line(change: dict[int, Tensor], says: str) -> None:
    arguments = [change.get(i, x) for i, x in enumerate(sides())]
    with pytest.raises(DataError, match=says) as raised:
        candidates(*arguments, count=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("settings", [{"count": 0}, {"count": 1, "block": 0}])
def test_no_candidates_at_all_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(DataError, match="at least 1"):
        candidates(*sides(), **settings)


@pytest.mark.parametrize("exact", [torch.zeros(3, 2), torch.zeros(2, 0)])
def test_recall_of_nothing_is_refused(exact: Tensor) -> None:
    with pytest.raises(DataError, match="same queries"):
        recall(torch.zeros(2, 5), exact)


def whole_sequences() -> nn.Sequential:
    """A model whose last linear layer answers for all four tokens of a row at once."""
    return nn.Sequential(nn.Linear(D, 4 * K), nn.Unflatten(1, (4, K)))


@pytest.mark.parametrize(
    ("module", "task", "targets", "says"),
    [
        (nn.Flatten(), Classification(), torch.arange(4), "no linear layer"),
        (whole_sequences(), CausalLM(), torch.zeros(4, 4).long(), "not the layer that answers"),
        (
            last(D),
            Denoising(alphas_cumprod=(0.5,), times=1),
            torch.arange(4),
            "denoising hands over 2",
        ),
    ],
)
def test_a_model_without_a_layer_that_answers_is_refused(
    module: nn.Module, task: Task, targets: Tensor, says: str
) -> None:
    with pytest.raises(ModelError, match=says) as raised:
        last_layer(module, task, rows(data(4, D), targets))
    assert isinstance(raised.value, ForwardInfError)
    assert "\n" not in str(raised.value)
