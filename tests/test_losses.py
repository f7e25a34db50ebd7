"""The losses of preference training, against numbers worked out by hand."""

import math

import pytest
import torch

from srkit.losses import length_handicap, likelihood_loss, preference_loss


def test_preference_loss_by_hand():
    chosen, rejected, zero = (
        torch.tensor([-10.0, -1.0]),
        torch.tensor([-12.0, -4.0]),
        torch.zeros(2),
    )
    loss = preference_loss(chosen, rejected, zero, zero, beta=0.5)
    # -log sigmoid(0.5 * 2) and -log sigmoid(0.5 * 3)
    assert loss.tolist() == pytest.approx([0.3132617, 0.2014133], abs=1e-6)
    same = preference_loss(chosen, rejected, chosen, rejected, beta=0.1)
    assert same.tolist() == pytest.approx([math.log(2)] * 2)
    worse = preference_loss(rejected, chosen, zero, zero, beta=0.5)
    assert worse.tolist() == pytest.approx([1.3132617, 1.7014133], abs=1e-6)


def test_smoothing_weighs_the_pair_turned_round_by_hand():
    chosen, rejected, zero = torch.tensor([-10.0]), torch.tensor([-12.0]), torch.zeros(1)
    loss = preference_loss(chosen, rejected, zero, zero, 0.5, smoothing=0.2)
    # 0.8 times -log sigmoid(1), 0.2 times -log sigmoid(-1)
    assert loss.item() == pytest.approx(0.8 * 0.3132617 + 0.2 * 1.3132617, abs=1e-6)
    turned = preference_loss(rejected, chosen, zero, zero, 0.5, smoothing=0.8)
    assert turned.item() == pytest.approx(loss.item()), "C = 0.2 takes the pairs the other way"
    pairs = [torch.tensor([a], requires_grad=True) for a in (-10.0, -12.0)]
    preference_loss(*pairs, *(p.detach() for p in pairs), 0.5, smoothing=0.5).sum().backward()
    assert pairs[0].grad.item() == 0, "C = 1/2 teaches nothing at the start"


def test_length_handicap_by_hand():
    tokens = torch.tensor([60, 10, 30]), torch.tensor([10, 60, 30])
    handicap = length_handicap(*tokens, alpha=0.02)
    assert handicap.tolist() == pytest.approx([1.0, -1.0, 0.0])
    chosen, rejected, zero = torch.full((3,), -10.0), torch.full((3,), -12.0), torch.zeros(3)
    loss = preference_loss(chosen, rejected, zero, zero, 0.5, handicap=handicap)
    # a margin of 1 and of the handicap: -log sigmoid of 2, 0 and 1
    assert loss.tolist() == pytest.approx([0.1269280, math.log(2), 0.3132617], abs=1e-6)


def test_likelihood_loss_by_hand():
    loss = likelihood_loss(torch.tensor([-10.0, -1.0]), torch.tensor([5, 4]))
    assert loss.tolist() == [2.0, 0.25], "nats per token of the chosen response"
