"""Train the demo detector: `python examples/train_detector.py OUT.npz`. Seeded.

Scenes have one or two shapes of different classes. The cells within 12 pixels of a shape's centre, on both axes, are trained
on its class and its box. Batch normalisation is used for training only, and folded into the kernels before they are saved.
At the end the kernel of the classes is trained again with a fixed negative bias, so that maps of evidence are not empty.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from xcam.contract.types import Array
from xcam.models import demo
from xcam.models.demo import detector, scenes

SEED = 2027
SCENES = 2500
EPOCHS = 12
BATCH = 50
REFINED, STEPS = 400, 300
"""Scenes and steps with which the classes are trained again at the end."""
BIAS = -8.0
"""The fixed bias of the classes at the end: the evidence for a class is then in the activations, and not in the bias."""
REACH = 12.0
"""Pixels from a shape's centre within which a cell is trained on its box."""


def draw(seed: int, count: int) -> tuple[Array, Array, Array]:
    """Return scenes: images [N, 3, 128, 128] in 0…255, boxes [N, 2, 4] (centre, size), labels [N, 2]; −1: there is none."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, 128, 128), np.uint8)
    boxes, labels = np.zeros((count, 2, 4), np.float32), np.full((count, 2), -1)
    for n in range(count):
        scene = scenes.scene(rng, rng.permutation(len(scenes.CLASSES))[: rng.integers(1, 3)].tolist())
        images[n] = scene.image.transpose(2, 0, 1)
        for k, shape in enumerate(scene.shapes):
            rows, columns = np.nonzero(shape.mask)
            low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
            boxes[n, k], labels[n, k] = [*(low + high) / 2, *(high - low)], shape.label
    return images, boxes, labels


def trainable() -> nn.Module:
    """Return the detector with batch normalisation, up to the numbers of each cell, [N, 4 + 6, 16, 16]."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for step in detector.STEPS:
        match step:
            case demo.Conv(name, filters, kernel):
                parts[name] = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
                parts[f"{name}_bn"] = nn.BatchNorm2d(filters)
                parts[f"{name}_relu"] = nn.ReLU()
                channels = filters
            case demo.Pool(name):
                parts[name] = nn.MaxPool2d(2)
    parts["heads"] = nn.Conv2d(channels, 4 + len(scenes.CLASSES), 1)
    return nn.Sequential(parts)


def loss(cells: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the classes at all cells plus the error of the boxes at those near a shape's centre."""
    targets, near, offset = assigned(boxes, labels)
    total = torch.zeros(())
    for k in range(2):
        sizes = torch.log(boxes[:, k, 2:].clamp(min=1) / detector.SIDE)[..., None, None].expand(-1, -1, 16, 16)
        wanted = torch.cat([offset[:, k] / detector.STRIDE, sizes], 1)
        errors = functional.smooth_l1_loss(cells[:, :4], wanted, reduction="none").sum(1)
        total = total + (errors * near[:, k]).sum()
    by_class = functional.binary_cross_entropy_with_logits(cells[:, 4:], targets, reduction="sum")
    return (by_class + 2 * total) / near.sum()


def assigned(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the classes of each cell [N, 6, 16, 16], the cells near each shape, and the offsets to its centre in pixels."""
    ticks = (torch.arange(16) + 0.5) * detector.STRIDE
    middle = torch.stack([ticks.expand(16, 16), ticks[:, None].expand(16, 16)])  # x, y
    offset = boxes[:, :, :2, None, None] - middle  # [N, 2, 2, 16, 16]
    near = (offset.abs().amax(2) <= REACH) & (labels >= 0)[..., None, None]  # [N, 2, 16, 16]
    targets = torch.zeros(len(boxes), len(scenes.CLASSES), 16, 16)
    for k in range(2):
        one_hot = functional.one_hot(labels[:, k].clamp(min=0), len(scenes.CLASSES)).float()
        targets = torch.maximum(targets, one_hot[..., None, None] * near[:, k, None])
    return targets, near, offset


def refine(arrays: dict[str, Array], images: Tensor, boxes: Tensor, labels: Tensor) -> None:
    """Train the kernel of the classes again, with a fixed bias, on the values of the last step; `arrays` are changed."""
    values = images.float() / 127.5 - 1
    for step in detector.STEPS:
        if isinstance(step, demo.Conv):
            kernel, bias = (torch.from_numpy(arrays[f"{step.name}/{part}"]).float() for part in ("kernel", "bias"))
            values = functional.conv2d(values, kernel, bias, padding=step.kernel // 2).relu()
        else:
            values = functional.max_pool2d(values, 2)
    x = values.permute(0, 2, 3, 1).flatten(0, 2)
    y = assigned(boxes, labels)[0].permute(0, 2, 3, 1).flatten(0, 2)
    kernel = torch.from_numpy(arrays[f"{detector.CLASSES}/kernel"]).float()[..., 0, 0].requires_grad_()
    optimizer = torch.optim.Adam([kernel], 0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        error = functional.binary_cross_entropy_with_logits(x @ kernel.T + BIAS, y) + 1e-5 * kernel.square().sum()
        torch.autograd.backward(error)
        optimizer.step()
    print(f"classes: {error.item():.4f}", flush=True)
    arrays[f"{detector.CLASSES}/kernel"] = kernel.detach().numpy()[..., None, None].astype(np.float16)
    arrays[f"{detector.CLASSES}/bias"] = np.full(len(kernel), BIAS, np.float16)


def turned(x: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch mirrored at random on both axes, and with rows and columns exchanged."""
    boxes = boxes.clone()
    mirrored, flipped, exchanged = torch.rand(3, generator=generator) < 0.5
    if mirrored:
        x, boxes[..., 0] = x.flip(3), 128 - boxes[..., 0]
    if flipped:
        x, boxes[..., 1] = x.flip(2), 128 - boxes[..., 1]
    return (x.transpose(2, 3), boxes[..., [1, 0, 3, 2]]) if exchanged else (x, boxes)


def folded(model: nn.Module) -> dict[str, Array]:
    """Return kernels [out, in, kernel, kernel] and biases with batch normalisation folded in, as float16."""
    parts: dict[str, Any] = dict(model.named_children())
    arrays: dict[str, Array] = {}
    for step in detector.STEPS:
        if isinstance(step, demo.Conv):
            conv, norm = parts[step.name], parts[f"{step.name}_bn"]
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            arrays[f"{step.name}/kernel"] = (conv.weight * factor[:, None, None, None]).numpy()
            arrays[f"{step.name}/bias"] = ((conv.bias - norm.running_mean) * factor + norm.bias).numpy()
    for name, rows in ((detector.BOXES, slice(4)), (detector.CLASSES, slice(4, None))):
        arrays[f"{name}/kernel"] = parts["heads"].weight[rows].numpy()
        arrays[f"{name}/bias"] = parts["heads"].bias[rows].numpy()
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def main() -> None:
    """Draw the scenes, train the network, fold and save its weights."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    images, boxes, labels = map(torch.from_numpy, draw(SEED, SCENES))
    model = trainable()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-3)
    steps = EPOCHS * (SCENES // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        losses = []
        for rows in torch.randperm(SCENES, generator=generator).view(-1, BATCH):
            x, wanted = turned(images[rows].float() / 127.5 - 1, boxes[rows], generator)
            optimizer.zero_grad()
            error = loss(model(x), wanted, labels[rows])
            torch.autograd.backward(error)
            optimizer.step()
            rate.step()
            losses.append(error.item())
        print(f"epoch {epoch + 1}: {np.mean(losses):.3f}", flush=True)
    model.eval()
    with torch.no_grad():
        arrays: dict[str, Any] = folded(model)
    refine(arrays, images[:REFINED], boxes[:REFINED], labels[:REFINED])
    np.savez_compressed(Path(sys.argv[1]), **arrays)


if __name__ == "__main__":
    main()
