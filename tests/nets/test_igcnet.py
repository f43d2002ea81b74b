"""The networks are the authors', counted and computed anew, and everything timm asks of a model holds for them."""
from itertools import chain

import pytest
import timm
import torch
from batch_norms import randomise
from safetensors.torch import load_file, save_file
from timm.layers import DropPath, LayerNorm2d
from timm.models import PretrainedCfg, get_pretrained_cfg, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import igczoo.nets.igcnet
import igczoo.registry
from igczoo import IGCNet, igc_resnet
from igczoo.checkpoints.card import Card, Preprocess, cards
from igczoo.nets import families
from igczoo.nets.igcnet import VARIANTS
from igczoo.nets.layers import ConvNormAct
from igczoo.registry import default_cfgs

# Of the authors' graphs, worked out apart from this code:
#                        weights of stem, projections, primary (or regular), secondary convolutions, norms, classifier; multiply-adds at 224
IMAGENET_COUNTS = {
    'igcnet18':          ((14700, 3000, 189000, 6800000, 30200, 1601000), 1264780800),
    'igcnet18_l16m16':   ((37632, 172032, 10985472, 245760, 38400, 2049000), 2265989120),
    'igcnet18_l4m32':    ((18816, 172032, 10985472, 30720, 19200, 1025000), 1944641536),
    'igc_regconv18_c64': ((9408, 172032, 10985472, 0, 9600, 513000), 1814073344),
    'igc_regconv18_c69': ((10143, 199962, 12769002, 0, 10350, 553000), 2098611264),
}
# depth, L, width of stage 1 -> weights with 10 classes, millions of multiply-adds at 32, of plain nets
PLAIN_COUNTS = {
    (8, None, 16): (75290, '12.2'), (20, None, 16): (269722, '40.6'), (38, None, 16): (561370, '83.0'), (98, None, 16): (1533530, '224.6'),
    (8, None, 18): (95068, '15.4'), (20, None, 18): (341020, '51.3'), (62, None, 18): (1201852, '176.7'),
    (8, 4, 32): (78634, '13.1'), (20, 4, 32): (277546, '42.4'), (38, 4, 32): (575914, '86.2'), (62, 4, 32): (973738, '144.7'),
    (8, 24, 48): (48442, '9.9'), (20, 24, 48): (155962, '28.8'), (38, 24, 48): (317242, '57.1'), (98, 24, 48): (854842, '151.4'),
}
# depth, L, M -> what the authors' resnet_igc.py counts, less the second path in the two down-sampling blocks: L * (2 LM + 4 LM), see IGCNet
RESIDUAL_COUNTS = {
    (20, 24, 2): 164410 - 24 * (96 + 192),
    (26, 24, 2): 218170 - 24 * (96 + 192),
    (50, 4, 32): 12158090 - 4 * (256 + 512),
}
CIFAR_VARIANTS = {
    'igc_resnet20_l24m2': 157498, 'igc_resnet38_l24m2': 318778, 'igc_resnet62_l24m2': 533818, 'igc_resnet20_l4m8': 280490,
    'igc_plain20_l24m2': 155962, 'igc_regconv20_w16': 272474, 'igc_regconv20_w18': 344476,
}
#                        stem, L of the stages, M of the stages (None: regular), stages that begin with a projection
STRUCTURES = {
    'igcnet18':           (100, (100, 200, 400, 800), (2, 2, 2, 2), {0, 1, 2, 3}),
    'igcnet18_l16m16':    (256, (16, 16, 16, 16), (16, 32, 64, 128), {1, 2, 3}),
    'igcnet18_l4m32':     (128, (4, 4, 4, 4), (32, 64, 128, 256), {1, 2, 3}),
    'igc_regconv18_c64':  (64, None, (64, 128, 256, 512), {1, 2, 3}),
    'igc_regconv18_c69':  (69, None, (69, 138, 276, 552), {1, 2, 3}),
    'igc_resnet20_l24m2': (48, (24, 24, 24), (2, 4, 8), {1, 2}),
    'igc_resnet38_l24m2': (48, (24, 24, 24), (2, 4, 8), {1, 2}),
    'igc_resnet62_l24m2': (48, (24, 24, 24), (2, 4, 8), {1, 2}),
    'igc_resnet20_l4m8':  (32, (4, 4, 4), (8, 16, 32), {1, 2}),
    'igc_plain20_l24m2':  (48, (24, 24, 24), (2, 4, 8), set()),
    'igc_regconv20_w16':  (16, None, (16, 32, 64), {1, 2}),
    'igc_regconv20_w18':  (18, None, (18, 36, 72), {1, 2}),
}
SMALL = {
    'L doubles, M = 2':   dict(stem='imagenet', stem_width=6, widths=(12, 24), primary=(6, 12), depths=(2, 1)),
    'L kept, M doubles':  dict(stem='cifar', stem_width=12, widths=(12, 24, 48), primary=(6, 6, 6), depths=(1, 2, 1)),
    'plain':              dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(4, 4), depths=(2, 2), shortcuts=False),
    'regular':            dict(stem='imagenet', stem_width=5, widths=(5, 10), primary=None, depths=(1, 2)),
}
TINY = dict(stem_width=6, widths=(12, 24, 48, 96), primary=(6, 12, 24, 48), depths=(1, 2, 1, 1))      # as igcnet18, for speed
TAPS = [6, 12, 24, 48, 96]


def create(name: str = 'igcnet18', **kwargs) -> nn.Module:
    """A tiny net by way of timm, always the same for the same arguments, in evaluation mode."""
    torch.manual_seed(0)
    return timm.create_model(name, **TINY | kwargs).eval()


def images(size: int = 32, n: int = 2, channels: int = 3, **kwargs) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1), **kwargs)


def count_params(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


def count_macs(model: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device='meta'))
    return counter.get_total_flops() // 2


# The authors' networks ----------------------------------------------------------------------------------------------------------------

def test_every_variant_is_checked_here():
    assert set(VARIANTS) == set(STRUCTURES) == {*IMAGENET_COUNTS, *CIFAR_VARIANTS}


@pytest.mark.parametrize('name', IMAGENET_COUNTS)
def test_counts_of_the_imagenet_nets(name):
    weights, macs = IMAGENET_COUNTS[name]
    model = IGCNet(**VARIANTS[name], num_classes=1000, device='meta')
    kinds = dict.fromkeys(['stem', 'projection', 'primary', 'secondary', 'norm', 'head'], 0)
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            kind = 'stem' if key == 'stem.conv' else 'projection' if 'shortcut' in key else 'secondary' if 'secondary' in key else 'primary'
            kinds[kind] += module.weight.numel()
        elif isinstance(module, nn.BatchNorm2d | nn.Linear):
            kinds['norm' if isinstance(module, nn.BatchNorm2d) else 'head'] += count_params(module)
    assert tuple(kinds.values()) == weights
    assert count_params(model) == sum(weights)
    assert count_macs(model, 224) == macs


@pytest.mark.parametrize('depth,primary,width', PLAIN_COUNTS)
def test_counts_of_the_plain_nets(depth, primary, width):
    sizes = dict(stem='cifar', stem_width=width, widths=(width, 2 * width, 4 * width), depths=((depth - 2) // 3,) * 3)
    model = IGCNet(**sizes, primary=primary and (primary,) * 3, shortcuts=False, num_classes=10, device='meta')
    assert (count_params(model), f'{count_macs(model, 32) / 1e6:.1f}') == PLAIN_COUNTS[depth, primary, width]
    if primary:
        built = igc_resnet(depth, primary, width // primary, shortcuts=False, device='meta')
        assert {key: value.shape for key, value in built.state_dict().items()} == {
            key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize('depth,primary,secondary', RESIDUAL_COUNTS)
def test_counts_of_the_residual_nets(depth, primary, secondary):
    assert count_params(igc_resnet(depth, primary, secondary, device='meta')) == RESIDUAL_COUNTS[depth, primary, secondary]


@pytest.mark.parametrize('primary,secondary,params', [(16, 32, 17711716), (450, 2, 19351000), (32, 26, 24128932)])
def test_counts_of_the_widest_plain_nets(primary, secondary, params):
    model = igc_resnet(20, primary, secondary, num_classes=100, shortcuts=False, device='meta')
    assert count_params(model) == params


@pytest.mark.parametrize('name', CIFAR_VARIANTS)
def test_counts_of_the_cifar_variants(name):
    assert count_params(IGCNet(**VARIANTS[name], num_classes=10, device='meta')) == CIFAR_VARIANTS[name]


@pytest.mark.parametrize('name', STRUCTURES)
def test_structure(name):
    stem_width, primary, secondary, projected = STRUCTURES[name]
    model, imagenet, plain = IGCNet(**VARIANTS[name], device='meta'), name in IMAGENET_COUNTS, 'plain' in name
    stem = model.stem.conv
    assert (stem.out_channels, stem.kernel_size, stem.stride, stem.padding) == (
        (stem_width, (7, 7), (2, 2), (3, 3)) if imagenet else (stem_width, (3, 3), (1, 1), (1, 1)))
    if imagenet:
        assert (model.pool.kernel_size, model.pool.stride, model.pool.padding, model.pool.ceil_mode) == (3, 2, 1, False)
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Conv2d))
    assert {(bn.eps, bn.momentum) for bn in model.modules() if isinstance(bn, nn.BatchNorm2d)} == {(2e-5, .01 if plain else .1)}
    assert {type(act) for act in chain(model.stages.modules(), model.stem) if 'activation' in type(act).__module__} == {nn.ReLU}
    in_chs = stem_width
    for s, (stage, m) in enumerate(zip(model.stages, secondary, strict=True)):
        width, partitions = (m * primary[s], primary[s]) if primary else (m, 1)
        for b, block in enumerate(stage):
            stride = 2 if s and not b else 1
            units = [block.unit] if plain else [block.unit1, block.unit2]
            for i, unit in enumerate(units):
                spatial = unit.conv.primary if primary else unit.conv
                assert (spatial.in_channels, spatial.out_channels, spatial.groups) == (in_chs if b == i == 0 else width, width, partitions)
                assert (spatial.kernel_size, spatial.stride) == ((3, 3), (stride if i == 0 else 1,) * 2)
                if primary:
                    pointwise = unit.conv.secondary
                    assert (pointwise.in_channels, pointwise.out_channels, pointwise.groups) == (width, width, m)
                    assert (pointwise.kernel_size, pointwise.stride) == ((1, 1), (1, 1))
            if not plain and b == 0 and s in projected:
                shortcut = block.shortcut.conv
                assert (shortcut.in_channels, shortcut.out_channels, shortcut.groups) == (in_chs, width, partitions)
                assert (shortcut.kernel_size, shortcut.stride) == ((1, 1), (stride,) * 2)
            elif not plain:
                assert isinstance(block.shortcut, nn.Identity)
        in_chs = width


def test_depth_is_the_number_of_layers():
    for name, model in ((name, IGCNet(**VARIANTS[name], device='meta')) for name in ('igc_resnet38_l24m2', 'igc_plain20_l24m2')):
        layers = [module for key, module in model.named_modules() if key.rsplit('.', 1)[-1].startswith('unit')]
        assert len(layers) + 2 == int(name[10:12] if 'resnet' in name else name[9:11])      # and the stem and the classifier


def logits_by_hand(state: dict[str, Tensor], x: Tensor, stem: str, primary: tuple[int, ...] | None, depths: tuple[int, ...],
                   shortcuts: bool = True, **_) -> Tensor:
    """The graphs of the authors in functions of torch, in evaluation mode."""
    def norm(x: Tensor, key: str) -> Tensor:
        mean, var, weight, bias = (state[f'{key}.{name}'][:, None, None] for name in ('running_mean', 'running_var', 'weight', 'bias'))
        return (x - mean) / (var + 2e-5).sqrt() * weight + bias

    def unit(x: Tensor, key: str, partitions: int | None, stride: int) -> Tensor:
        if partitions is None:
            return norm(F.conv2d(x, state[f'{key}.conv.weight'], stride=stride, padding=1), f'{key}.bn')
        weight = state[f'{key}.conv.primary.weight']
        x = F.channel_shuffle(F.conv2d(x, weight, stride=stride, padding=1, groups=partitions), partitions)
        x = F.conv2d(x, state[f'{key}.conv.secondary.weight'], groups=len(weight) // partitions)
        return norm(F.channel_shuffle(x, len(weight) // partitions), f'{key}.bn')

    imagenet = stem == 'imagenet'
    x = F.conv2d(x, state['stem.conv.weight'], stride=2 if imagenet else 1, padding=3 if imagenet else 1)
    x = norm(x, 'stem.bn').relu()
    x = F.max_pool2d(x, 3, 2, 1) if imagenet else x
    for s, (depth, partitions) in enumerate(zip(depths, primary or [None] * len(depths), strict=True)):
        for b in range(depth):
            key, stride = f'stages.{s}.{b}', 2 if s and not b else 1
            if shortcuts:
                y = unit(unit(x, f'{key}.unit1', partitions, stride).relu(), f'{key}.unit2', partitions, 1)
                if (weight := state.get(f'{key}.shortcut.conv.weight')) is not None:
                    x = norm(F.conv2d(x, weight, stride=stride, groups=partitions or 1), f'{key}.shortcut.bn')
                x = (x + y).relu()
            else:
                x = unit(x, f'{key}.unit', partitions, stride).relu()
    return x.mean((2, 3)) @ state['head.weight'].T + state['head.bias']


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('height,width', [(32, 32), (33, 18)])
def test_logits_equal_a_computation_by_hand(name, height, width):
    torch.manual_seed(0)
    model = IGCNet(**SMALL[name], num_classes=5, dtype=torch.float64).eval()
    randomise(model)
    nn.init.normal_(model.head.bias)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(model(x), logits_by_hand(model.state_dict(), x, **SMALL[name]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('size', [1, 20, 32, 33, 34, 37])
def test_maps_have_the_size_of_floor_mode(size):
    def window(side: int, kernel: int, pad: int) -> int:
        return 1 + (side + 2 * pad - kernel) // 2

    sides = [window(size, 7, 3)]
    side = window(sides[0], 3, 1)
    for s in range(4):
        side = window(side, 3, 1) if s else side
        sides.append(side)
    maps = create(device='meta').forward_intermediates(torch.empty(1, 3, size, size, device='meta'), intermediates_only=True)
    assert [tuple(x.shape[1:]) for x in maps] == [(channels, side, side) for channels, side in zip(TAPS, sides, strict=True)]


def test_initialisation():
    torch.manual_seed(0)
    model = igc_resnet(14, 24, 2, num_classes=100)
    convs = [module.weight.detach() for module in model.modules() if isinstance(module, nn.Conv2d)]
    for weight in convs:
        deviation = weight.std() / (2 / weight[0].numel()) ** .5
        assert abs(deviation - 1) < 5 / (2 * weight.numel()) ** .5
    whole = torch.cat([(weight * (weight[0].numel() / 2) ** .5).flatten() for weight in convs])
    assert abs(whole.mean()) < .01 and abs(whole.std() - 1) < .01 and abs((whole ** 4).mean() - 3) < .1     # a normal distribution
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    for reset in (False, True):
        if reset:
            model.reset_classifier(100)
        head, bound = model.head, 192 ** -.5
        assert .98 * bound < head.weight.abs().max() <= bound and abs(head.weight.std() / bound * 3 ** .5 - 1) < .02
        assert (head.bias == 0).all()


# Arguments ----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('depth,shortcuts,blocks', [(8, True, 1), (20, True, 3), (5, False, 1), (11, False, 3)])
def test_builder(depth, shortcuts, blocks):
    model = igc_resnet(depth, 3, 5, num_classes=7, shortcuts=shortcuts, in_chans=2, device='meta')
    assert [len(stage) for stage in model.stages] == [blocks] * 3
    assert [info['num_chs'] for info in model.feature_info] == [15, 15, 30, 60]
    assert [info['reduction'] for info in model.feature_info] == [1, 1, 2, 4]
    assert model(torch.empty(2, 2, 32, 32, device='meta')).shape == (2, 7)


def test_builder_passes_further_arguments_on():
    model = igc_resnet(5, 4, 2, shortcuts=False, norm_layer='batchnorm2d', device='meta')
    assert model.stem.bn.eps == 1e-5
    with pytest.raises(TypeError, match='colour'):
        igc_resnet(colour='red')


@pytest.mark.parametrize('arguments,message', [
    (dict(depth=21), 'igc_resnet: depth is 21; with shortcuts=True it must be 6n + 2, as 8 or 14'),
    (dict(depth=2), 'igc_resnet: depth is 2; with shortcuts=True it must be 6n + 2, as 8 or 14'),
    (dict(depth=21, shortcuts=False), 'igc_resnet: depth is 21; with shortcuts=False it must be 3n + 2, as 5 or 8'),
    (dict(depth=-4), 'igc_resnet: depth is -4; with shortcuts=True it must be 6n + 2, as 8 or 14'),
    (dict(primary=0), 'igc_resnet: primary is 0; it must be a positive integer'),
    (dict(primary=None), 'igc_resnet: primary is None; it must be a positive integer'),
    (dict(secondary=1.5), 'igc_resnet: secondary is 1.5; it must be a positive integer'),
])
def test_bad_arguments_of_the_builder(arguments, message):
    with pytest.raises(ValueError) as raised:
        igc_resnet(**arguments)
    assert str(raised.value) == message


@pytest.mark.parametrize('arguments,message', [
    (dict(primary=(4,)), 'IGCNet: widths=(8, 16), primary=(4,) and depths=(1, 1) must have one entry a stage'),
    (dict(depths=(1, 1, 1)), 'IGCNet: widths=(8, 16), primary=(4, 4) and depths=(1, 1, 1) must have one entry a stage'),
    (dict(primary=None, depths=(1,)), 'IGCNet: widths=(8, 16), primary=None and depths=(1,) must have one entry a stage'),
    (dict(stem='mnist'), "IGCNet: stem is 'mnist'; it must be 'imagenet' or 'cifar'"),
    (dict(stem='imagenet', output_stride=2), "IGCNet: output_stride is 2; it must be a power of two and at least 4, the stem's"),
    (dict(output_stride=0), "IGCNet: output_stride is 0; it must be a power of two and at least 1, the stem's"),
    (dict(output_stride=12), "IGCNet: output_stride is 12; it must be a power of two and at least 1, the stem's"),
    (dict(shortcuts=False, drop_path_rate=.1),
     'IGCNet: drop_path_rate=0.1 needs shortcuts; a plain net must use drop_path_rate=0'),
    (dict(stem_width=6), 'IGConv2d: in_channels=6 cannot be split into primary=4 equal partitions; it must be a multiple of 4'),
    (dict(widths=(10, 16)), 'IGConv2d: out_channels=10 cannot be split into primary=4 equal partitions; it must be a multiple of 4'),
])
def test_bad_arguments_of_the_net(arguments, message):
    with pytest.raises(ValueError) as raised:
        IGCNet(**dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(4, 4), depths=(1, 1), device='meta') | arguments)
    assert str(raised.value) == message


def test_unknown_arguments():
    with pytest.raises(TypeError, match='colour'):
        IGCNet(**SMALL['plain'], colour='red')
    with pytest.raises(TypeError, match='colour'):
        create(colour='red')
    with pytest.raises(ValueError, match='a plain net must use drop_path_rate=0'):
        timm.create_model('igc_plain20_l24m2', drop_path_rate=.1, device='meta')


def test_activations_and_norms_by_name():
    model = igc_resnet(8, 4, 2, act_layer='silu', norm_layer='layernorm2d')
    norms = {type(module) for module in model.modules() if 'norm' in type(module).__name__.lower()}
    assert norms == {LayerNorm2d, ConvNormAct}
    assert sum(isinstance(module, nn.SiLU) for module in model.modules()) == 7
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    assert model(images(8)).shape == (2, 10)
    assert isinstance(igc_resnet(8, 4, 2, act_layer=nn.GELU, device='meta').stem.act, nn.GELU)


def test_device_and_dtype():
    model = create(device='meta', dtype=torch.bfloat16)
    tensors = list(chain(model.parameters(), model.buffers()))
    assert all(tensor.is_meta for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16, torch.int64}     # BatchNorm counts batches in int64


def test_bfloat16_and_channels_last():
    model, x = create(num_classes=5, dtype=torch.float64), images(dtype=torch.float64)
    randomise(model)
    expected = model(x)
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=.1, atol=.1 * expected.abs().max().item())


# timm: registration -------------------------------------------------------------------------------------------------------------------

def test_registered_names():
    assert set(timm.list_models('igc*')) == set(timm.list_models(module='registry')) == set(families.VARIANTS)
    assert set(timm.list_pretrained('igc*')) == set(cards())


@pytest.mark.parametrize('name', families.VARIANTS)
def test_what_timm_is_told_is_true(name):
    model = timm.create_model(name, device='meta')
    cfg = model.pretrained_cfg
    assert cfg['architecture'] == name
    assert model.num_classes == cfg['num_classes']
    assert model.get_submodule(cfg['first_conv']).in_channels == cfg['input_size'][0] == model.in_chans
    classifier = model.get_submodule(cfg['classifier'])
    assert classifier is model.get_classifier() and classifier.out_features == cfg['num_classes']
    features = model.forward_features(torch.empty(2, *cfg['input_size'], device='meta'))
    assert features.shape == (2, model.num_features, *cfg['pool_size'])
    assert model.forward_head(features).shape == (2, cfg['num_classes'])
    paper = '1804.06202' if name.startswith('igcv2') else '1806.00178' if name.startswith('igcv3') else '1707.02725'
    assert [cfg[key] for key in ('paper_ids', 'interpolation')] == [f'arXiv:{paper}', 'bilinear']


@pytest.mark.parametrize('name', VARIANTS)
def test_normalisation_is_the_authors(name):
    """Their scripts give it for pixels in 0..255."""
    if name in IMAGENET_COUNTS:
        mean, std, crop = (123.370, 112.757, 99.406), (68.998, 66.093, 68.292), .875
    else:
        mean, std, crop = (125.307, 122.950, 113.865), (62.993, 62.089, 66.705), 1
    cfg = igczoo.nets.igcnet.timm_cfg(name)
    assert [255 * value for value in cfg['mean']] == pytest.approx(mean, abs=2e-4)
    assert [255 * value for value in cfg['std']] == pytest.approx(std, abs=2e-4)
    assert cfg['crop_pct'] == crop


@pytest.mark.parametrize('name', cards())
def test_cfg_of_a_card(name):
    card, cfg = cards()[name], get_pretrained_cfg(name)
    assert (cfg.architecture, cfg.tag) == (card.model, card.tag)
    assert (cfg.num_classes, cfg.license, cfg.description) == (card.num_classes, card.license, card.title)
    for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode'):
        assert getattr(cfg, key) == getattr(card.preprocess, key)
    assert (cfg.url, cfg.hf_hub_id) == ((card.origin.url, None) if card.origin else (None, f'igczoo/{name}'))
    assert cfg.label_names == (None if card.labels == 'imagenet-1k' else card.labels)
    if card.default:
        assert timm.models.get_pretrained_cfg(card.model).tag == card.tag


# timm: features -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'fx', 'getter'])
@pytest.mark.parametrize('indices', [None, (1, 3)])
def test_features_only(feature_cls, indices):
    chosen = indices or range(5)
    model = create(features_only=True, feature_cls=feature_cls, **dict(out_indices=indices) if indices else {})
    expected = create().forward_intermediates(images(), list(chosen), intermediates_only=True)
    assert model.feature_info.channels() == [TAPS[i] for i in chosen]
    assert model.feature_info.reduction() == [2 << i for i in chosen]
    found = model(images())
    found = list(found.values()) if isinstance(found, dict) else found
    assert [tuple(x.shape[1:]) for x in found] == [(TAPS[i], 16 >> i, 16 >> i) for i in chosen]
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_feature_cfg_of_the_user_is_merged_and_left_alone():
    feature_cfg = dict(out_indices=(2,), feature_cls='getter')
    for _ in range(2):
        model = create(features_only=True, feature_cfg=feature_cfg)
        assert model.feature_info.reduction() == [8] and len(model(images())) == 1
    assert feature_cfg == dict(out_indices=(2,), feature_cls='getter')
    assert len(create(features_only=True, feature_cfg=dict(feature_cls='dict'))(images())) == 5


def test_features_of_a_cifar_net():
    model = timm.create_model('igc_resnet20_l4m8', features_only=True).eval()
    assert [tuple(x.shape[1:]) for x in model(images(8))] == [(32, 8, 8), (32, 8, 8), (64, 4, 4), (128, 2, 2)]
    assert model.feature_info.reduction() == [1, 1, 2, 4]


def test_forward_intermediates():
    model, x = create(num_classes=5), images()
    randomise(model)
    tapped = {}
    for info in model.feature_info:
        model.get_submodule(info['module']).register_forward_hook(
            lambda module, args, out, key=info['module']: tapped.update({key: out.clone()}))
    final, taps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x)) and torch.equal(taps[-1], final)
    for tap, info in zip(taps, model.feature_info, strict=True):
        assert torch.equal(tap, tapped[info['module']])
        assert tap.shape == (2, info['num_chs'], 32 // info['reduction'], 32 // info['reduction'])
    for indices, chosen in ((2, [3, 4]), ([0, 2], [0, 2]), ([-1], [4]), ([-5, -3], [0, 2])):
        final, found = model.forward_intermediates(x, indices)
        assert torch.equal(final, taps[-1])
        assert all(torch.equal(x, taps[i]) for x, i in zip(found, chosen, strict=True))
    for last in range(5):
        tapped.clear()
        final, found = model.forward_intermediates(x, [last], stop_early=True)
        assert len(found) == 1 and torch.equal(found[0], taps[last]) and len(tapped) == last + 1
        if last:
            assert torch.equal(final, taps[last])
    with pytest.raises(ValueError) as raised:
        model.forward_intermediates(x, output_fmt='NLC')
    assert str(raised.value) == "forward_intermediates: output_fmt is 'NLC'; it must be 'NCHW'"


@pytest.mark.parametrize('index', range(5))
def test_prune_intermediate_layers(index):
    model, x = create(num_classes=5), images()
    expected = model.forward_intermediates(x, [index], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([index]) == [index]
    y = model(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(model.forward_intermediates(x, [index], intermediates_only=True)[0], expected)
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (TAPS[index], TAPS[index], 0)
    y.sum().backward()
    assert all(param.grad is not None for param in model.parameters())
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), expected)


def test_prune_may_keep_the_classifier():
    model, x = create(num_classes=5), images()
    logits = model(x)
    assert model.prune_intermediate_layers(2, prune_head=False) == [3, 4]
    assert torch.equal(model(x), logits)
    assert model.prune_intermediate_layers([-3], prune_norm=True, prune_head=False) == [2]
    assert isinstance(model.head, nn.Identity) and model(x).shape == (2, 24, 4, 4)


# timm: head ---------------------------------------------------------------------------------------------------------------------------

POOLS = {
    'avg': lambda x: x.mean((2, 3)),
    'max': lambda x: x.amax((2, 3)),
    'avgmax': lambda x: (x.mean((2, 3)) + x.amax((2, 3))) / 2,
    'catavgmax': lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1),
}


@pytest.mark.parametrize('pool', POOLS)
@pytest.mark.parametrize('reset', [True, False])
def test_pools(pool, reset):
    model = create(num_classes=5) if reset else create(num_classes=5, global_pool=pool)
    if reset:
        model.reset_classifier(7, pool)
    x = images(48)
    features = model.forward_features(x)
    pooled = POOLS[pool](features)
    torch.testing.assert_close(model(x), pooled @ model.head.weight.T + model.head.bias)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    assert model.head_hidden_size == pooled.shape[1] == model.head.in_features
    assert model.head.out_features == model.num_classes == (7 if reset else 5)
    model.reset_classifier(0)       # keeps the pooling
    torch.testing.assert_close(model(x), pooled)
    assert model.head_hidden_size == pooled.shape[1] and isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), features)


def test_nets_without_a_classifier():
    model, x = create(num_classes=0), images(48)
    assert torch.equal(model(x), model.forward_features(x).mean((2, 3))) and model(x).shape == (2, 96)
    assert create(num_classes=0, global_pool='')(x).shape == (2, 96, 2, 2)


def test_reset_classifier_keeps_mode_and_dtype():
    model = create(num_classes=5, drop_rate=.3, dtype=torch.float64)
    model.requires_grad_(False)
    model.reset_classifier(7)
    assert not any(module.training for module in model.modules())
    assert {key for key, param in model.named_parameters() if param.requires_grad} == {'head.weight', 'head.bias'}
    assert model.head.weight.dtype == torch.float64 and model.head_drop.p == .3
    model.train().reset_classifier(3, 'max')
    assert all(module.training for module in model.modules())
    assert create(device='meta').head.weight.is_meta


def test_drop_rate():
    model, x = create(num_classes=5, drop_rate=.5), images()
    assert torch.equal(model(x), create(num_classes=5)(x))
    model.head_drop.train()
    features = model.forward_features(x)
    dropped = model.forward_head(features, pre_logits=True)
    pooled = features.mean((2, 3))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * pooled[kept])
    assert 0 < (~kept & (pooled != 0)).sum() < kept.numel()


def test_drop_path_rate_rises_to_the_last_block():
    model = IGCNet('cifar', 8, (8, 16, 32), (4, 4, 4), (1, 3, 1), drop_path_rate=.4, num_classes=5)
    drops = [block.drop_path for stage in model.stages for block in stage]
    assert isinstance(drops[0], nn.Identity) and all(isinstance(drop, DropPath) for drop in drops[1:])
    assert [drop.drop_prob for drop in drops[1:]] == pytest.approx([.1, .2, .3, .4])
    block, x = model.stages[1][2], images(8, n=16, channels=16)
    block.drop_path.drop_prob = .5
    model.eval()
    residual = block.unit2(block.act1(block.unit1(x)))
    block.drop_path.train()
    for image, rest, out in zip(x, residual, block(x), strict=True):    # each keeps its shortcut, and has the rest twice or not at all
        assert torch.equal(out, image.relu()) or torch.allclose(out, (image + 2 * rest).relu(), atol=1e-5)
    assert not any(isinstance(module, DropPath) for module in create(device='meta').modules())


# timm: training and export ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['L doubles, M = 2', 'plain'])
def test_grad_checkpointing_changes_nothing_but_memory(name):
    outcomes, calls = [], []
    for enable in (False, True):
        torch.manual_seed(0)
        model = IGCNet(**SMALL[name], num_classes=5, dtype=torch.float64).eval()
        randomise(model)
        model.set_grad_checkpointing(enable)
        model.stages[1][0].register_forward_pre_hook(lambda module, args, enable=enable: calls.append(enable))
        x = images(dtype=torch.float64)
        y, taps = model(x), model.forward_intermediates(x, intermediates_only=True)
        (y.square().sum() + sum(tap.square().sum() for tap in taps)).backward()
        outcomes.append([y, *taps, *(param.grad for param in model.parameters())])
    assert calls == [False] * 2 + [True] * 4     # two forward passes; with checkpointing again in the backward pass
    for plain, checkpointed in zip(*outcomes, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_learns(name):
    model = IGCNet(**SMALL[name], num_classes=5)
    F.cross_entropy(model(images()), torch.tensor([1, 4])).backward()
    assert all(param.grad is not None and param.grad.abs().sum() > 0 for param in model.parameters())


def test_layer_groups():
    model = create(num_classes=5)
    fine = group_parameters(model, model.group_matcher())
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    names = [name for name, _ in model.named_parameters()]
    assert sorted(chain.from_iterable(fine.values())) == sorted(chain.from_iterable(coarse.values())) == sorted(names)
    blocks = ['stages.0.0', 'stages.1.0', 'stages.1.1', 'stages.2.0', 'stages.3.0']
    for groups, prefixes in ((fine, blocks), (coarse, ['stages.0', 'stages.1', 'stages.2', 'stages.3'])):
        expected = [[name for name in names if name.startswith(f'{prefix}.')] for prefix in ('stem', *prefixes, 'head')]
        assert [sorted(groups[i]) for i in sorted(groups)] == [sorted(group) for group in expected]


def test_layer_decay():
    model = create(num_classes=5)
    scales = {id(param): group['lr_scale'] for group in param_groups_layer_decay(model, layer_decay=.5) for param in group['params']}
    by_name = {name: scales[id(param)] for name, param in model.named_parameters()}
    for name, expected in (('head.weight', 1), ('head.bias', 1), ('stages.3.0.unit2.bn.weight', .5), ('stages.1.1.unit1.bn.bias', .125),
                           ('stages.1.0.unit1.conv.primary.weight', .0625), ('stem.conv.weight', .5 ** 6)):
        assert by_name[name] == expected, name
    optimizer = create_optimizer_v2(model, opt='sgd', lr=.1, momentum=.9, layer_decay=.5)
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(by_name)


@pytest.mark.parametrize('output_stride', [4, 8, 16, 32])
def test_output_stride_takes_every_position(output_stride):
    """A net that dilates computes, at the positions of the strides it does not take, what the net that strides does."""
    torch.manual_seed(0)
    strided = IGCNet('imagenet', **TINY, num_classes=0, dtype=torch.float64).eval()
    randomise(strided)
    dilated = IGCNet('imagenet', **TINY, num_classes=0, output_stride=output_stride, dtype=torch.float64).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 45, 38, dtype=torch.float64)
    maps = [net.forward_intermediates(x, intermediates_only=True) for net in (strided, dilated)]
    for coarse, fine, before, after in zip(*maps, strided.feature_info, dilated.feature_info, strict=True):
        assert before['reduction'] == min(before['reduction'], 32) and after['reduction'] == min(before['reduction'], output_stride)
        assert fine.shape[2:] == (-(-45 // after['reduction']), -(-38 // after['reduction']))
        step = before['reduction'] // after['reduction']
        torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-11, atol=1e-11)
    info = timm.create_model('igcnet18', **TINY, features_only=True, output_stride=output_stride, device='meta').feature_info
    assert info.reduction() == [min(2 << i, output_stride) for i in range(5)]


@pytest.mark.parametrize('output_stride', [8, 16, 32])
def test_output_stride_dilates_as_resnet18_of_timm(output_stride):
    kwargs = dict(output_stride=output_stride, device='meta')
    ours, theirs = timm.create_model('igcnet18', **TINY | dict(depths=(2, 2, 2, 2)), **kwargs), timm.create_model('resnet18', **kwargs)
    stages = nn.ModuleList([theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4])
    found, expected = ([(conv.stride, conv.dilation, conv.padding) for conv in net.modules()
                        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)] for net in (ours.stages, stages))
    assert found == expected and len(found) == 16
    shortcuts = [stage[0].shortcut.conv.stride for stage in ours.stages[1:]]
    assert shortcuts == [stage[0].downsample[0].stride for stage in stages[1:]]


SCRIPT_IS_DEPRECATED = pytest.mark.filterwarnings('ignore:.torch.jit.script. is')


@pytest.fixture
def traced():
    """A net of both kinds of shortcut with random statistics, an input, and its output."""
    model, x = create(num_classes=5), images()
    randomise(model)
    return model, x, model(x).detach()


@SCRIPT_IS_DEPRECATED
def test_torchscript(traced, tmp_path):
    model, x, expected = traced
    torch.testing.assert_close(torch.jit.script(model)(x), expected)


def test_fx(traced):
    model, x, expected = traced
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)


def test_compile_without_graph_breaks(traced):
    model, x, expected = traced
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(x), expected)
    torch.compiler.reset()


def test_export_with_any_batch(traced):
    model, x, expected = traced
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    torch.testing.assert_close(program.module()(x.repeat(3, 1, 1, 1)[:5]), expected.repeat(3, 1)[:5])


# Checkpoints --------------------------------------------------------------------------------------------------------------------------

NAME = 'igcnet18.in1k'      # a checkpoint for 1000 classes
BN, SECONDARY = 'stages.0.0.unit1.bn.weight', 'stages.1.0.unit2.conv.secondary.weight'
DEFECTS = {
    'missing': ({SECONDARY: None}, f"it lacks ['{SECONDARY}'], has unknown [] and other shapes in []"),
    'unknown': ({'stages.9.bias': (1,)}, "it lacks [], has unknown ['stages.9.bias'] and other shapes in []"),
    'misshapen': ({BN: (13,)}, f"it lacks [], has unknown [] and other shapes in ['{BN} (13,) for (12,)']"),
    'all': ({SECONDARY: None, 'stages.9.bias': (1,), BN: (1, 12)},
            f"it lacks ['{SECONDARY}'], has unknown ['stages.9.bias'] and other shapes in ['{BN} (1, 12) for (12,)']"),
}
ADAPTATIONS = {
    'as it is': {}, 'other classes': dict(num_classes=7), 'no classes': dict(num_classes=0), 'grey': dict(in_chans=1),
    'features': dict(features_only=True), 'features by getter': dict(features_only=True, feature_cls='getter', out_indices=(1,)),
}


def trained(num_classes: int = 1000) -> nn.Module:
    """What stands for a trained net: random statistics and a classifier with biases."""
    model = create(NAME, num_classes=num_classes)
    randomise(model)
    nn.init.normal_(model.head.bias)
    return model


def load(name: str = NAME, overlay: dict | None = None, **kwargs) -> nn.Module:
    """A net whose own initial values differ from those of `trained`."""
    torch.manual_seed(9)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **TINY | kwargs).eval()


def test_a_checkpoint_without_counters_of_batches_is_taken():
    """As torch takes it, and as old ones are."""
    net = trained().eval()
    state = {key: value for key, value in net.state_dict().items() if not key.endswith('.num_batches_tracked')}
    assert torch.equal(load(overlay=dict(state_dict=state))(images()), net(images()))


@pytest.mark.parametrize('adaptation', ADAPTATIONS)
@pytest.mark.parametrize('defect', DEFECTS)
def test_checkpoints_of_other_nets_are_refused(defect, adaptation):
    state, (changes, found) = trained().state_dict(), DEFECTS[defect]
    for key, shape in changes.items():
        if shape:
            state[key] = torch.ones(shape)
        else:
            del state[key]
    with pytest.raises(RuntimeError) as raised:
        load(overlay=dict(state_dict=state), **ADAPTATIONS[adaptation])
    assert str(raised.value) == f'the checkpoint is not of this IGCNet: {found}; load one of the same architecture'


@pytest.mark.parametrize('changes,found', [
    ({'head.bias': None}, 'Missing key.*head.bias'),
    ({'head.weight': (999, 96)}, 'size mismatch for head.weight'),
    ({'stem.conv.weight': (6, 3, 3, 3)}, 'size mismatch for stem.conv.weight'),
    ({'stem.conv.weight': None}, r"it lacks \['stem.conv.weight'\]"),
])
def test_stem_and_classifier_must_fit_too(changes, found):
    state = trained().state_dict() | {key: torch.ones(shape or 1) for key, shape in changes.items()}
    with pytest.raises(RuntimeError, match=f'(?s){found}'):
        load(overlay=dict(state_dict={key: value for key, value in state.items() if changes.get(key, True)}))


@pytest.mark.parametrize('source', ['state_dict', 'file'])
@pytest.mark.parametrize('adaptation', ADAPTATIONS)
def test_checkpoints_are_adapted(adaptation, source, tmp_path):
    original, kwargs, x = trained(), ADAPTATIONS[adaptation], images()
    state = original.state_dict()
    save_file(state, tmp_path / 'model.safetensors')
    model = load(overlay=dict(state_dict=state) if source == 'state_dict' else dict(file=str(tmp_path / 'model.safetensors')), **kwargs)
    if 'features_only' in kwargs:
        taps = original.forward_intermediates(x, list(kwargs.get('out_indices', range(5))), intermediates_only=True)
        for found, expected in zip(model(x), taps, strict=True):
            torch.testing.assert_close(found, expected)
    elif 'in_chans' in kwargs:
        torch.testing.assert_close(model(x[:, :1]), original(x[:, :1].repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(model.forward_features(x), original.forward_features(x))
        assert model(x).shape == (2, kwargs.get('num_classes', 1000) or 96)
        assert kwargs or torch.equal(model(x), original(x))


def test_checkpoints_of_other_classes_load_whole_where_the_cfg_says_so(tmp_path):
    original = trained(num_classes=5)
    save_file(original.state_dict(), tmp_path / 'mine.safetensors')
    model = load(overlay=dict(file=str(tmp_path / 'mine.safetensors'), num_classes=5))
    assert torch.equal(model(images()), original(images()))


# Checkpoints with a card --------------------------------------------------------------------------------------------------------------

class Store:
    """In the place of `igczoo.checkpoints.store.fetch`: saves a file that fits the card, and keeps account of what it was asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def fetch(self, card, cache_dir=None):
        self.asked.append((card.name, cache_dir))
        path = self.folder / 'model.safetensors'
        save_file(trained(card.num_classes).state_dict(), path)
        return path


@pytest.fixture
def store(monkeypatch, tmp_path) -> Store:
    """The cards there are, and igcnet18.unit: five classes, on the hub."""
    words = dict.fromkeys(['license', 'terms', 'provenance', 'limits'], 'none')
    preprocess = Preprocess((3, 32, 40), (.1, .2, .3), (.4, .5, .6), 'bicubic', .9)
    card = Card('igcnet18', 'unit', 'Unit', 1, 1, tuple('abcde'), preprocess, (), **words, sha256='0' * 64, size=1)
    cfg = PretrainedCfg(**igczoo.registry._card_cfg(card), architecture='igcnet18', tag='unit')
    store, everything = Store(tmp_path), cards() | {card.name: card}
    monkeypatch.setattr(igczoo.registry, 'cards', lambda: everything)
    monkeypatch.setattr(igczoo.registry, 'fetch', store.fetch)
    monkeypatch.setitem(default_cfgs['igcnet18'].cfgs, 'unit', cfg)
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, card.name, cfg)
    return store


@pytest.mark.parametrize('name,classes,source', [
    ('igcnet18.unit', 5, {'hf_hub_id': 'igczoo/igcnet18.unit'}),
    ('igcnet18.in1k', 1000, {'url': get_pretrained_cfg('igcnet18.in1k').url}),
])
def test_weights_come_through_the_store(store, name, classes, source):
    model = load(name, cache_dir='somewhere')
    assert store.asked == [(name, 'somewhere')]
    assert torch.equal(model(images()), trained(classes)(images()))
    assert 'file' not in model.pretrained_cfg and 'file' not in model.default_cfg
    assert {key: model.pretrained_cfg.get(key) for key in ('hf_hub_id', 'url')} == dict(hf_hub_id=None, url=None) | source
    assert model.pretrained_cfg['num_classes'] == classes


def test_cfg_of_a_loaded_model_is_the_card(store):
    cfg = load('igcnet18.unit').pretrained_cfg
    assert (cfg['input_size'], cfg['pool_size'], cfg['mean'], cfg['std']) == ((3, 32, 40), (1, 2), (.1, .2, .3), (.4, .5, .6))
    assert (cfg['interpolation'], cfg['crop_pct'], cfg['label_names']) == ('bicubic', .9, tuple('abcde'))
    again = load('igcnet18', pretrained_cfg=cfg)
    assert again.num_classes == 5 and [name for name, _ in store.asked] == ['igcnet18.unit'] * 2


def test_the_bare_name_means_the_default_tag(store):
    tag = default_cfgs['igcnet18'].tags[0]
    assert load('igcnet18').pretrained_cfg['tag'] == tag
    assert store.asked == [(f'igcnet18.{tag}', None)]


@pytest.mark.parametrize('kwargs', [
    dict(num_classes=7), dict(in_chans=1), dict(overlay=dict(mean=(0, 0, 0))), *(
        dict(features_only=True, feature_cls=feature_cls) for feature_cls in ('list', 'dict', 'hook', 'fx', 'getter'))])
def test_the_store_serves_every_form_of_the_net(store, kwargs):
    model = load('igcnet18.unit', **kwargs)
    assert store.asked == [('igcnet18.unit', None)]
    assert 'file' not in model.pretrained_cfg
    assert model.pretrained_cfg['mean'] == ((0, 0, 0) if 'overlay' in kwargs else (.1, .2, .3))
    stem, = (tensor for key, tensor in model.state_dict().items() if key.endswith(('stem.conv.weight', 'stem_conv.weight')))
    expected = load_file(store.folder / 'model.safetensors')['stem.conv.weight']
    torch.testing.assert_close(stem, expected.sum(1, keepdim=True) if 'in_chans' in kwargs else expected)


def test_without_pretrained_nothing_is_fetched(store):
    model = create('igcnet18.unit')
    assert store.asked == [] and model.num_classes == 5 and model.pretrained_cfg['hf_hub_id'] == 'igczoo/igcnet18.unit'


@pytest.mark.parametrize('name', ['igcnet18.unit', 'igcnet18.in1k'])
@pytest.mark.parametrize('source', ['state_dict', 'file', 'hf_hub_id', 'hf_hub_filename'])
def test_a_source_of_the_users_bypasses_the_store(store, name, source, monkeypatch, tmp_path):
    original = trained(5 if name == 'igcnet18.unit' else 1000)
    save_file(original.state_dict(), tmp_path / 'mine.safetensors')
    asked = []
    monkeypatch.setattr(timm.models._builder, 'load_state_dict_from_hf', lambda *args, **_: asked.append(args) or original.state_dict())
    overlay, from_hub = {
        'state_dict': (dict(state_dict=original.state_dict()), []),
        'file': (dict(file=str(tmp_path / 'mine.safetensors')), []),
        'hf_hub_id': (dict(hf_hub_id='me/mine'), [('me/mine',)]),
        'hf_hub_filename': (dict(hf_hub_id=f'igczoo/{name}', hf_hub_filename='mine.bin'), [(f'igczoo/{name}', 'mine.bin')]),
    }[source]
    model = load(name, overlay)
    assert torch.equal(model(images()), original(images()))
    assert store.asked == [] and asked == from_hub
    assert source == 'state_dict' or model.pretrained_cfg[source] == overlay[source]


@pytest.mark.parametrize('name', [name for name in families.VARIANTS if name not in {card.model for card in cards().values()}])
def test_an_architecture_without_weights_says_so(name):
    with pytest.raises(RuntimeError) as raised:
        timm.create_model(name, pretrained=True, device='meta')
    assert str(raised.value) == f'No pretrained weights exist for {name}. Use `pretrained=False` for random init.'


def test_unknown_tags():
    with pytest.raises(RuntimeError, match=r'Invalid pretrained tag \(moon\)'):
        timm.create_model('igcnet18.moon', pretrained=True, device='meta')


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(depths=(1, 0)), r'IGCNet: depths is \(1, 0\); each stage must have at least one block'),
    (dict(widths=(), primary=(), depths=()), 'IGCNet: widths is empty; there must be at least one stage'),
    (dict(depths=(1,)), 'must have one entry a stage'),
])
def test_a_net_without_blocks_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        IGCNet(**(dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(4, 4), depths=(1, 1)) | changes))
