"""Group norm in the place of batch norm: what it computes, and what SDS-CL then is."""

import pytest
import torch
from test_sds_cl import batch, module
from torch import nn

from datamodules.errors import InputError
from lightning_modules.group_norm import by_groups


def test_every_batch_norm_becomes_a_group_norm_with_its_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(6, eps=1e-3))).double()
    nn.init.normal_(network[1][1].weight), nn.init.normal_(network[1][1].bias)
    begun = {name: p.clone() for name, p in network.named_parameters()}
    by_groups(network, 3)
    assert dict(network.named_buffers()) == {} and begun.keys() == dict(network.named_parameters()).keys()
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    found = network[1][1](x)
    for clip in range(2):
        for channel in range(6):
            group = x[clip, channel // 2 * 2 : channel // 2 * 2 + 2]
            normal = (x[clip, channel] - group.mean()) / (group.var(correction=0) + 1e-3).sqrt()
            expected = normal * begun["1.1.weight"][channel] + begun["1.1.bias"][channel]
            torch.testing.assert_close(found[clip, channel], expected)


def test_a_width_that_the_groups_do_not_divide_is_refused():
    for groups in (0, 4):
        with pytest.raises(InputError, match=f"divides every width, found {groups} for 6"):
            by_groups(nn.Sequential(nn.BatchNorm1d(6)), groups)


def test_groups_of_one_number_are_refused_where_they_would_be_all_there_is():
    """Of a vector such a group is 0 for any input; of a map it is a channel's frames and joints."""
    vectors = nn.GroupNorm(6, 6)(torch.randn(4, 6))
    assert vectors.abs().max() < 1e-3  # but for rounding
    with pytest.raises(InputError, match="fewer groups than a BatchNorm1d has features, found 6 for 6 numbers"):
        by_groups(nn.Sequential(nn.BatchNorm1d(6)), 6)
    maps = nn.Sequential(nn.BatchNorm2d(6))
    by_groups(maps, 6)
    assert maps(torch.randn(4, 6, 3, 2)).abs().max() > 1


def test_sds_cl_by_groups_keeps_nothing_of_its_batches_and_reads_every_clip_alone():
    model = module(norm_groups=4).train()
    assert not any(tensor.is_floating_point() for name, tensor in model.state_dict().items() if "running" in name)
    assert not [name for name in model.state_dict() if name not in dict(model.named_parameters())]
    whole, half = batch(clips=4), batch(clips=4)
    features = model.features(whole)
    alone = model.features(half._replace(**{name: value[:2] for name, value in half._asdict().items()}))
    torch.testing.assert_close(features[:2], alone)
    assert module().state_dict().keys() > model.state_dict().keys(), "a batch norm's weights keep their names"
