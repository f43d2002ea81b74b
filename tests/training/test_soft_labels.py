"""Distillation: what the student learns from, and that a teacher is asked once."""
import dataclasses

import numpy as np
import pytest
import timm
import torch
from test_augment import RESIZED, random_images
from timm.data import create_transform
from torch import nn

from igczoo.inference.classifier import Classifier
from igczoo.training.augment import Augmentation
from igczoo.training.soft_labels import SoftLabels, digest, distillation

TAUGHT = dataclasses.replace(RESIZED, teacher_windows=2, teacher_share=.7, temperature=2.)


def a_teacher(size: int = 16, classes: int = 10) -> Classifier:
    torch.manual_seed(5)
    net = timm.create_model('igc_resnet20_l24m2', num_classes=classes)
    net.pretrained_cfg = dict(architecture='igc_resnet20_l24m2', tag='teacher', input_size=(3, size, size), mean=(.5, .4, .3),
                              std=(.2, .25, .3))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, .1), module.running_var.uniform_(.5, 2)
    return Classifier(net, create_transform((3, size, size)), [f'class{i}' for i in range(classes)])


def test_the_divergence_is_that_of_softened_scores():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (3 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = ((values.numpy() / 3. - np.log(np.exp(values.numpy() / 3.).sum(1, keepdims=True))) for values in (theirs, ours))
    assert distillation(ours, theirs, 3.).item() == pytest.approx(9 * (np.exp(p) * (p - q)).sum(1).mean(), rel=1e-5)
    assert distillation(ours, ours, 3.).item() == pytest.approx(0, abs=1e-6)


def test_logits_are_the_teachers_of_the_windows_that_the_student_sees(tmp_path):
    images, teacher = random_images(12, 64), a_teacher()
    lesson = SoftLabels(teacher, TAUGHT, images, tmp_path, 0).of(0)
    student = Augmentation(dataclasses.replace(TAUGHT, mean=(.0,) * 3, std=(1.,) * 3), images)
    seen = student.cut(torch.arange(12), lesson.windows._replace(mirrored=torch.zeros(12, dtype=torch.bool)), 16) / 255
    cfg = teacher.model.pretrained_cfg
    mean, std = (torch.tensor(cfg[name]).view(1, 3, 1, 1) for name in ('mean', 'std'))
    flipped = torch.where(lesson.windows.mirrored.view(-1, 1, 1, 1), seen.flip(3), seen)
    with torch.no_grad():
        expected = teacher.model((flipped - mean) / std)
    torch.testing.assert_close(lesson.logits.float(), expected, rtol=2e-3, atol=2e-3)
    assert lesson.logits.std() > .01


def test_a_teacher_is_asked_once_for_each_turn_and_anew_for_another_teacher_or_seed(tmp_path, monkeypatch):
    images, teacher, asked = random_images(12, 64), a_teacher(), []
    ask = SoftLabels._ask
    monkeypatch.setattr(SoftLabels, '_ask', lambda self, *arguments: asked.append(1) or ask(self, *arguments))
    lessons = [SoftLabels(teacher, TAUGHT, images, tmp_path, 0).of(epoch) for epoch in (0, 1, 2, 3)]
    assert len(asked) == len(list(tmp_path.iterdir())) == 2
    for here, there, same in ((0, 2, True), (1, 3, True), (0, 1, False)):
        assert torch.equal(lessons[here].logits, lessons[there].logits) == torch.equal(
            lessons[here].windows.sides, lessons[there].windows.sides) == same
    with torch.no_grad():
        teacher.model.get_classifier().bias[3] += 1
    other = SoftLabels(teacher, TAUGHT, images, tmp_path, 0).of(0)
    assert len(asked) == 3 and torch.allclose(other.logits[:, 3], lessons[0].logits[:, 3] + 1, atol=1e-2)
    SoftLabels(teacher, TAUGHT, images, tmp_path, 1).of(0)
    assert len(asked) == 4


def test_a_digest_tells_nets_apart():
    nets = [nn.Linear(3, 2) for _ in range(2)]
    assert digest(nets[0]) != digest(nets[1])
    nets[1].load_state_dict(nets[0].state_dict())
    assert digest(nets[0]) == digest(nets[1])
