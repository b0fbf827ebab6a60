"""List metrics against values worked out by hand, and against scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import ndcg_score

from agents.offline.metrics import LIST_METRICS, average_precision, f1, hit_share, labels_of, ndcg


def test_values_worked_out_by_hand() -> None:
    label = torch.tensor([[1.0, 0.0, 1.0]])  # hits at places 1 and 3 of three, four positives in all
    positives = torch.tensor([4.0])
    assert hit_share(label, positives).item() == pytest.approx(2 / 4)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg(label, positives).item() == pytest.approx((1 + 1 / math.log2(4)) / ideal)
    assert average_precision(label, positives).item() == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert f1(label, positives).item() == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_a_perfect_list_scores_one_and_a_missed_positive_counts() -> None:
    label = torch.tensor([[1.0, 1.0, 0.0]])
    for name in ("H", "NDCG", "MAP"):
        assert LIST_METRICS[name](label, torch.tensor([2.0])).item() == pytest.approx(1.0)
        assert LIST_METRICS[name](label, torch.tensor([3.0])).item() < 0.9
    assert ndcg(torch.ones(1, 3), torch.tensor([5.0])).item() == pytest.approx(1.0)  # the list is full


def test_ndcg_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand((40, 20), generator=generator) < 0.2).float()
    label[:, 0] = 1.0
    score = torch.rand((40, 20), generator=generator)
    listed = label.gather(1, score.topk(6).indices)
    ours = ndcg(listed, label.sum(dim=1)).mean().item()
    assert ours == pytest.approx(ndcg_score(label.numpy(), score.numpy(), k=6), abs=1e-6)


@pytest.mark.parametrize("name", list(LIST_METRICS))
def test_requests_without_positives_have_no_value(name: str) -> None:
    value = LIST_METRICS[name](torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0.0, 1.0]))
    assert value.isnan().tolist() == [True, False]


def test_labels_follow_the_items_of_the_list() -> None:
    candidates, label = torch.tensor([[7, 3, 9, 4]]), torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert labels_of(torch.tensor([[4, 9, 3]]), candidates, label).tolist() == [[1.0, 0.0, 1.0]]
    with pytest.raises(ValueError, match="is not among the"):
        labels_of(torch.tensor([[4, 8]]), candidates, label)
    with pytest.raises(ValueError, match="twice"):
        labels_of(torch.tensor([[4, 4]]), candidates, label)
