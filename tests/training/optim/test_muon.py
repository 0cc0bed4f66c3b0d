import pytest
import torch
from torch import nn

from fiber.training.optim import muon
from fiber.training.optim.muon import MuonAdamW, orthogonalized, share

pytestmark = pytest.mark.oldest


@pytest.mark.parametrize("shape", [(2, 40, 96), (3, 96, 40), (1, 32, 32)])
def test_orthogonalized_matrices(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonalized(matrices)
    # The published coefficients end with singular values between about 0.7 and 1.2, except for
    # those that were close to 0.
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    if shape[1] != shape[2]:
        assert values.min() > 0.6
    # The singular vectors are kept.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    mixed = (u.transpose(1, 2) @ found @ vh.transpose(1, 2)).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(mixed.sort().values, values.flip(1))


def test_muon_by_hand():
    torch.manual_seed(0)
    start, gradients = torch.randn(8, 18), torch.randn(2, 8, 18)
    parameter = nn.Parameter(start.clone())
    group = {"params": [parameter], "by_muon": True, "weight_decay": 0.1, "lr_factor": 1.0}
    muon = MuonAdamW([group], lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    expected, momentum = start.clone(), torch.zeros(8, 18)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        muon.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.05 * gradient + 0.95 * momentum
        direction = orthogonalized(update[None])[0]
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 18**0.5 * direction
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon since 2.9")
def test_muon_is_that_of_pytorch():
    torch.manual_seed(0)
    start = torch.randn(96, 40)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    group = {"params": [ours], "by_muon": True, "weight_decay": 0.1, "lr_factor": 1.0}
    muon = MuonAdamW([group], lr=0.01, betas=(0.9, 0.98), eps=1e-8)
    peer = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        ours.grad = torch.randn(96, 40)
        theirs.grad = ours.grad.clone()
        muon.step()
        peer.step()
    moved = (theirs - start).abs().max()
    # PyTorch rounds each of the fifteen products of its iteration to the eight bits of bfloat16.
    assert (ours - theirs).abs().max() < moved * 2**-6
    assert (ours - theirs).abs().mean() < moved * 2**-8


def test_muon_leaves_the_other_groups_to_adamw():
    torch.manual_seed(0)
    vector, peer, idle = (nn.Parameter(torch.ones(4)) for _ in range(3))
    matrix = nn.Parameter(torch.ones(4, 4))
    options = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-8}
    groups = [
        {"params": [vector, idle], "by_muon": False, "weight_decay": 0.1, "lr_factor": 1.0},
        {"params": [matrix], "by_muon": True, "weight_decay": 0.1, "lr_factor": 1.0},
    ]
    both = MuonAdamW(groups, **options)
    alone = torch.optim.AdamW([peer], weight_decay=0.1, fused=True, **options)
    for _ in range(3):
        vector.grad = peer.grad = torch.randn(4)
        both.step()
        alone.step()
    assert torch.equal(vector, peer)
    assert torch.equal(idle, torch.ones(4))
    assert torch.equal(matrix, torch.ones(4, 4))  # no gradient
    assert len(both.param_groups) == 2


def test_buckets_do_not_change_the_result(monkeypatch):
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (3, 8)]
    starts, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))

    def trained():
        parameters = [nn.Parameter(start.clone()) for start in starts]
        options = {"by_muon": True, "lr_factor": 1.0}
        groups = [
            {"params": parameters[:3], "weight_decay": 0.1, **options},
            {"params": parameters[3:], "weight_decay": 0.0, **options},
        ]
        optimizer = MuonAdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-8)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return parameters

    whole = trained()
    # Two matrices at most, and one where they are larger.
    monkeypatch.setattr(muon, "_BUCKET_ELEMENTS", 48)
    torch.testing.assert_close(trained(), whole)
    monkeypatch.setattr(muon, "_BUCKET_ELEMENTS", 1)
    torch.testing.assert_close(trained(), whole)


def test_ranks_share_the_work():
    shapes = [(80, 80)] * 27 + [(240, 80)] * 13 + [(480, 160)] * 2 + [(20, 60)] * 3
    owners = share(shapes, 3)
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    loads = [
        sum(w for w, owner in zip(work, owners, strict=True) if owner == rank) for rank in range(3)
    ]
    # No rank has more than its part and one matrix.
    assert max(loads) <= sum(work) / 3 + max(work)
    assert share(shapes, 1) == [0] * len(shapes)
    assert share([(4, 4)], 3) == [0]
