"""BatchNorm layers as a trained network has them: a new one's statistics are an identity, under which mistakes cancel out."""
import copy

import timm
import torch
from torch import nn


def randomise(model: nn.Module) -> None:
    """Random statistics and affine terms in every BatchNorm2d of a model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -1), (module.running_var, .5), (module.weight.data, .5), (module.bias.data, -1)):
                tensor.uniform_(low, 1.5)


def make(name: str, **kwargs) -> nn.Module:
    """A model of timm's, in float64, for evaluation."""
    net = timm.create_model(name, **kwargs).double()
    randomise(net)
    return net.eval()


def fused_with_same_outputs(net: nn.Module) -> list[nn.Module]:
    """The modules of what timm's `reparameterize_model` makes of a net, which must compute the same and leave the net as it was."""
    before = copy.deepcopy(net.state_dict())
    fused = timm.utils.reparameterize_model(net)
    x = torch.randn(2, 3, 64, 40, dtype=torch.float64)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(fused(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return list(fused.modules())
