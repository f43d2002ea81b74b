"""transformers takes a folder that fine-tuning has left, label names in their place."""
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import igczoo

pytestmark = pytest.mark.clients


def test_the_pipeline_takes_a_folder_of_ones_own(tmp_path: Path):
    rng = np.random.default_rng(0)
    for label, colour in dict(blue=(60, 60, 190), red=(190, 60, 60)).items():
        (tmp_path / 'photos' / label).mkdir(parents=True)
        for i in range(6):
            noisy = np.clip(np.array(colour) + rng.normal(0, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / 'photos' / label / f'{i}.png')
    ours = igczoo.finetune('igc_resnet20_l24m2', tmp_path / 'photos', tmp_path / 'mine', freeze=True, report=False)
    from transformers import pipeline
    classify = pipeline('image-classification', model=str(tmp_path / 'mine'), device='cpu')
    assert classify.model.config.id2label == {0: 'blue', 1: 'red'}
    for label in ('blue', 'red'):
        photograph = tmp_path / 'photos' / label / '0.png'
        theirs, own = classify(str(photograph))[0], ours.classify(photograph, k=1)[0]
        assert theirs['label'] == own.label == label and abs(theirs['score'] - own.score) < 1e-3
