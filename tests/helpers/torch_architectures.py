"""Well-known networks, written from their papers, for benchmarks and tests: torchvision has no build for torch's CPU one.

VGG16 (Simonyan and Zisserman 2014), ResNet (He et al. 2015), MobileNetV3 (Howard et al. 2019). Random weights.
"""

from __future__ import annotations

from torch import Tensor, nn


def vgg16() -> nn.Module:
    """`features` 0…30 and `classifier`, as torchvision numbers them."""
    features: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if not width:
            features.append(nn.MaxPool2d(2))
            continue
        features += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        channels = width
    head = [
        nn.Linear(512 * 49, 4096),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(True),
        nn.Dropout(),
    ]
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Sequential(*head, nn.Linear(4096, 1000)))
    return model


class Residual(nn.Module):
    """A basic (expansion 1) or bottleneck (expansion 4) block."""

    def __init__(self, into: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        out = width * expansion
        if expansion == 1:
            self.conv1, self.conv2 = _conv(into, width, 3, stride), _conv(width, width, 3)
            parts = [self.conv1, nn.BatchNorm2d(width), nn.ReLU(inplace=True), self.conv2, nn.BatchNorm2d(out)]
        else:
            self.conv1, self.conv2, self.conv3 = (
                _conv(into, width, 1),
                _conv(width, width, 3, stride),
                _conv(width, out, 1),
            )
            parts = [self.conv1, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            parts += [self.conv2, nn.BatchNorm2d(width), nn.ReLU(inplace=True), self.conv3, nn.BatchNorm2d(out)]
        self.body = nn.Sequential(*parts)
        same = stride == 1 and into == out
        self.down = nn.Identity() if same else nn.Sequential(_conv(into, out, 1, stride), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.down(x))


def _conv(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def _resnet(blocks: tuple[int, ...], expansion: int) -> nn.Module:
    model = nn.Sequential()
    model.add_module("conv1", _conv(3, 64, 7, 2))
    model.add_module("bn1", nn.BatchNorm2d(64))
    model.add_module("relu", nn.ReLU(inplace=True))
    model.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
    into = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        parts = []
        for k in range(count):
            parts.append(Residual(into, width, 2 if stage and not k else 1, expansion))
            into = width * expansion
        model.add_module(f"layer{stage + 1}", nn.Sequential(*parts))
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(into, 1000))
    return model


def resnet18() -> nn.Module:
    return _resnet((2, 2, 2, 2), 1)


def resnet50() -> nn.Module:
    return _resnet((3, 4, 6, 3), 4)


class Squeeze(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = _eighths(channels // 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Inverted(nn.Module):
    """Expand, depthwise, squeeze, project; added to its input where shapes allow."""

    def __init__(
        self, into: int, kernel: int, inner: int, out: int, squeeze: bool, act: type[nn.Module], stride: int
    ) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        if inner != into:
            parts += [_conv(into, inner, 1), nn.BatchNorm2d(inner), act(inplace=True)]
        parts += [_conv(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner), act(inplace=True)]
        parts += [Squeeze(inner)] if squeeze else []
        self.body = nn.Sequential(*parts, _conv(inner, out, 1), nn.BatchNorm2d(out))
        self.add = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


def _eighths(n: float) -> int:
    return max(8, int(n + 4) // 8 * 8)


def mobilenet_v3_large() -> nn.Module:
    """`features` 0…16 and `classifier`, as torchvision numbers them."""
    r, h = nn.ReLU, nn.Hardswish
    table = (
        (3, 16, 16, False, r, 1), (3, 64, 24, False, r, 2), (3, 72, 24, False, r, 1), (5, 72, 40, True, r, 2),
        (5, 120, 40, True, r, 1), (5, 120, 40, True, r, 1), (3, 240, 80, False, h, 2), (3, 200, 80, False, h, 1),
        (3, 184, 80, False, h, 1), (3, 184, 80, False, h, 1), (3, 480, 112, True, h, 1), (3, 672, 112, True, h, 1),
        (5, 672, 160, True, h, 2), (5, 960, 160, True, h, 1), (5, 960, 160, True, h, 1),
    )  # fmt: skip
    features: list[nn.Module] = [nn.Sequential(_conv(3, 16, 3, 2), nn.BatchNorm2d(16), h(inplace=True))]
    into = 16
    for kernel, inner, out, squeeze, act, stride in table:
        features.append(Inverted(into, kernel, inner, out, squeeze, act, stride))
        into = out
    features.append(nn.Sequential(_conv(into, 960, 1), nn.BatchNorm2d(960), h(inplace=True)))
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module(
        "classifier", nn.Sequential(nn.Linear(960, 1280), h(inplace=True), nn.Dropout(), nn.Linear(1280, 1000))
    )
    return model
