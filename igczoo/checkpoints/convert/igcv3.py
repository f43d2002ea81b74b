"""What the modules of `IGCV3` are called in its authors' checkpoint, and in those of pytorchcv."""
__all__ = ['CHECKPOINTS', 'PYTORCHCV']

# In symbols/igcv3.py of homles11/IGCV3, and here; both count from 0.
AUTHORS_NAMES = (
    ('conv',   'first-3x3-conv-conv2d',                     'stem.conv'),
    ('bn',     'first-3x3-conv-batchnorm',                  'stem.bn'),
    ('conv',   'seq-{s}-block{b}-exp-conv2d',               'stages.{s}.{b}.expand'),
    ('bn',     'seq-{s}-block{b}-exp-batchnorm',            'stages.{s}.{b}.bn1'),
    ('conv',   'seq-{s}-block{b}-depthwise-conv2d',         'stages.{s}.{b}.depthwise'),
    ('bn',     'seq-{s}-block{b}-depthwise-batchnorm',      'stages.{s}.{b}.bn2'),
    ('conv',   'seq-{s}-block{b}-linear-conv2d',            'stages.{s}.{b}.project'),
    ('bn',     'seq-{s}-block{b}-linear-batchnorm',         'stages.{s}.{b}.bn3'),
    ('conv',   'last-1x1-conv-conv2d',                      'final.conv'),
    ('bn',     'last-1x1-conv-batchnorm',                   'final.bn'),
    ('linear', 'fc',                                        'head'),
)
PYTORCHCV_NAMES = (
    ('torch', 'features.init_block.conv',                               'stem.conv'),
    ('torch', 'features.init_block.bn',                                 'stem.bn'),
    ('torch', 'features.stage{section}.unit{member}.conv1.conv',        'stages.{s}.{b}.expand'),
    ('torch', 'features.stage{section}.unit{member}.conv1.bn',          'stages.{s}.{b}.bn1'),
    ('torch', 'features.stage{section}.unit{member}.conv2.conv',        'stages.{s}.{b}.depthwise'),
    ('torch', 'features.stage{section}.unit{member}.conv2.bn',          'stages.{s}.{b}.bn2'),
    ('torch', 'features.stage{section}.unit{member}.conv3.conv',        'stages.{s}.{b}.project'),
    ('torch', 'features.stage{section}.unit{member}.conv3.bn',          'stages.{s}.{b}.bn3'),
    ('torch', 'features.final_block.conv',                              'final.conv'),
    ('torch', 'features.final_block.bn',                                'final.bn'),
    ('torch', 'output',                                                 'head'),
)
CHECKPOINTS = {'igcv3_100': AUTHORS_NAMES}        # igcv3-0000.params; the authors' narrower nets are others, see `IGCV3`
PYTORCHCV = dict.fromkeys(['igcv3_100', 'igcv3_075', 'igcv3_050', 'igcv3_025'], PYTORCHCV_NAMES)     # igcv3_w1, _w3d4, _wd2, _wd4
