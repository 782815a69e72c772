"""The peer of benchmark.py: the same ResNet50 and the same work, as a PyTorch user writes it.

channels_last, parameters frozen during the attack, no host synchronisation in the loop, autocast
for bfloat16.
"""

# pyright: reportMissingImports=false
# PyTorch is nobody's dependency here: who wants the comparison installs it.

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

EPSILON, RELATIVE_STEP = 0.03, 2.5


class Bottleneck(nn.Module):
    """torchvision's block: stride in the 3×3 convolution."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        wide = 4 * features
        self.body = nn.Sequential(
            nn.Conv2d(channels, features, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, stride, 1, bias=False),
            nn.BatchNorm2d(features),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != wide:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, wide, 1, stride, bias=False), nn.BatchNorm2d(wide)
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, 4·features, H/stride, W/stride)."""
        return F.relu(self.body(images) + self.shortcut(images), inplace=True)


def resnet50() -> nn.Module:
    """Returns ResNet50 with two classes on pixels in [0, 1]."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            features, stride = 64 * 2**stage, 2 if stage and not block else 1
            layers.append(Bottleneck(channels, features, stride))
            channels = 4 * features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


def tasks(
    images: np.ndarray, labels: np.ndarray, num_steps: int, dtype: str
) -> list[tuple[str, str, Callable[[], None]]]:
    """Returns the PGD attack and the adversarial step on images (B, H, W, 3) uint8."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = {"device": device, "memory_format": torch.channels_last}
    net = resnet50().to(**memory)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).to(**memory)
    targets = torch.tensor(labels).long().to(device)
    mean, std = (
        torch.tensor(x, device=device).view(1, 3, 1, 1)
        for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    step_size = RELATIVE_STEP * EPSILON / num_steps

    def logits(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return net((x - mean) / std).float()

    def attack() -> torch.Tensor:
        net.eval().requires_grad_(False)
        low, high = (pixels - EPSILON).clamp(min=0), (pixels + EPSILON).clamp(max=1)
        x = pixels + torch.empty_like(pixels).uniform_(-EPSILON, EPSILON)
        x = x.clamp(0, 1)
        for _ in range(num_steps):
            x.requires_grad_(True)
            loss = F.cross_entropy(logits(x), targets, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
            x = torch.clamp(x.detach() + step_size * gradient.sign(), low, high)
        return x

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def attack_task() -> None:
        attack()
        finish()

    def adversarial_step() -> None:
        examples = torch.cat([pixels, attack()])
        net.train().requires_grad_(True)
        loss = F.cross_entropy(logits(examples), targets.repeat(2))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        finish()

    return [("attack", "pytorch", attack_task), ("adversarial_step", "pytorch", adversarial_step)]
