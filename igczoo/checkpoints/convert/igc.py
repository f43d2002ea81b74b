"""What the modules of `IGCNet` are called in its authors' checkpoints.

No array changes: the channels lie in the same order, since `interleave` is the authors' Reorder.
"""
__all__ = ['CHECKPOINTS']

# In the authors' graphs (network/*-symbol.json, where stages and blocks count from 1), and here (from 0).
IGC = (
    ('conv',   'g0_conv',                               'stem.conv'),
    ('bn',     'g0_bn',                                 'stem.bn'),
    ('conv',   'g{stage}_b{block}_conv{unit}_conv1',    'stages.{s}.{b}.unit{unit}.conv.primary'),
    ('conv',   'g{stage}_b{block}_conv{unit}_conv2',    'stages.{s}.{b}.unit{unit}.conv.secondary'),
    ('bn',     'g{stage}_b{block}_conv{unit}_bn',       'stages.{s}.{b}.unit{unit}.bn'),
    ('conv',   'g{stage}_b{block}_proj_conv',           'stages.{s}.{b}.shortcut.conv'),
    ('bn',     'g{stage}_b{block}_proj_bn',             'stages.{s}.{b}.shortcut.bn'),
    ('linear', 'fc_score',                              'head'),
)
REGULAR = (
    ('conv',   'g0',                                    'stem.conv'),
    ('bn',     'g0_bn',                                 'stem.bn'),
    ('conv',   'g{stage}_b{block}_conv{unit}',          'stages.{s}.{b}.unit{unit}.conv'),
    ('bn',     'g{stage}_b{block}_conv{unit}_bn',       'stages.{s}.{b}.unit{unit}.bn'),
    ('conv',   'g{stage}_b{block}_proj',                'stages.{s}.{b}.shortcut.conv'),
    ('bn',     'g{stage}_b{block}_proj_bn',             'stages.{s}.{b}.shortcut.bn'),
    ('linear', 'fc_score',                              'head'),
)
CHECKPOINTS = {                         # the authors' file
    'igcnet18':          IGC,           # resnet_igc_imgnet_d18b100-0095.params
    'igcnet18_l16m16':   IGC,
    'igcnet18_l4m32':    IGC,
    'igc_regconv18_c64': REGULAR,
    'igc_regconv18_c69': REGULAR,
}
