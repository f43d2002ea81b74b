"""BatchNorm layers as a trained network has them: a new one's statistics are an identity, under which mistakes cancel out."""
from torch import nn


def randomise(model: nn.Module) -> None:
    """Random statistics and affine terms in every BatchNorm2d of a model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -1), (module.running_var, .5), (module.weight.data, .5), (module.bias.data, -1)):
                tensor.uniform_(low, 1.5)
