"""The main peer: torchvision's networks with the same weights, in a hand-tuned PyTorch loop.

channels_last, parameters frozen in the attack, no host synchronisation in the loop; autocast for
bfloat16, TF32 for float32 (as XLA), cuDNN's autotuning; eager and `torch.compile`.
"""

# pyright: reportMissingImports=false, reportInvalidTypeForm=false
# PyTorch is no dependency of this project; `make peers` installs it.

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.cases import ALL, ATTACKS, DECAY, EPSILON, RELATIVE_STEP, Case, Job
from benchmarks.flops import CLASSES
from medadv_jax.classifier import NORMALIZATIONS, Variables
from medadv_jax.models.layers import scale_channels
from medadv_jax.models.pretrained import torchvision_names as layout
from medadv_jax.models.pretrained.verify import without_fake_registration

Tensor = torch.Tensor


def device_name() -> str:
    """Returns "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def set_up() -> None:
    """Sets the global options of a hand-tuned program."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True


class Network(nn.Module):
    """torchvision's network on pixels: (B, 3, H, W) in [0, 1] → (B, 2) float32."""

    def __init__(
        self, model: str, precision: str, width: float = 1.0, normalization: str = "imagenet"
    ):
        """`width`: as in `create_model`, of ResNet50 alone."""
        super().__init__()
        with without_fake_registration(torch):
            from torchvision import models
        special = {"aux_logits": False, "init_weights": False} if "inception" in model else {}
        self.network = getattr(models, model)(weights=None, num_classes=CLASSES, **special)
        if width != 1.0:
            _narrow_resnet50(self.network, width)
        mean, std = NORMALIZATIONS[normalization][:2]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.bfloat16 = precision == "bfloat16"

    def forward(self, pixels: Tensor) -> Tensor:
        """Classifies."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.network((pixels - self.mean) / self.std).float()


def _narrow_resnet50(network: Any, width: float) -> None:
    """Replaces the layers of torchvision's ResNet50 by ones with `width` times the channels."""
    with without_fake_registration(torch):
        from torchvision.models.resnet import Bottleneck
    stem, *stages = (scale_channels(features, width) for features in (64, 64, 128, 256, 512))
    network.inplanes = stem
    network.conv1, network.bn1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem)
    for number, (features, blocks) in enumerate(zip(stages, (3, 4, 6, 3), strict=True), start=1):
        stage = network._make_layer(Bottleneck, features, blocks, stride=1 if number == 1 else 2)
        setattr(network, f"layer{number}", stage)
    network.fc = nn.Linear(4 * stages[-1], CLASSES)


def make_network(case: Case, images: np.ndarray) -> Network:
    """Returns a network with random weights, in eval mode.

    Its running statistics are those of `images` (B, H, W, 3) uint8: with the initial ones
    activations would grow from block to block. Residual branches are scaled down, as in trained
    networks: otherwise the loss is so rough that rounding decides where an attack ends.
    """
    net = Network(case.model, "float32")
    for name, weight in net.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(weight, 0.2)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics are the mean over all batches, here one
    with torch.no_grad():
        net.train()(to_pixels(images[:32], "cpu"))
    for norm in norms:
        norm.momentum = 0.1
    net.bfloat16 = case.precision == "bfloat16"
    return net.eval().to(device_name(), memory_format=torch.channels_last)


def our_variables(case: Case, net: Network) -> Variables:
    """Returns our variables with the weights of `net`."""
    state = {name: tensor.cpu().numpy() for name, tensor in net.network.state_dict().items()}
    variables: Variables = {"params": {}, "batch_stats": {}}
    for path, source in layout.sources(case.model).items():
        node = variables
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = source.transform(state[source.name])
    return variables


def load_variables(net: Network, model: str, variables: Variables) -> None:
    """Gives `net` our variables, for networks whose layouts differ in the order of axes alone."""
    state = {}
    for path, source in layout.sources(model).items():
        array: Any = functools.reduce(lambda node, part: node[part], path, variables)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[source.name] = torch.tensor(np.ascontiguousarray(array))
    missing, unexpected = net.network.load_state_dict(state, strict=False)
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not lost + unexpected, lost + unexpected


def to_pixels(images: np.ndarray, device: str | None = None) -> Tensor:
    """(B, H, W, 3) uint8, or float32 in [0, 1] → (B, 3, H, W) float32 in [0, 1]."""
    scale = 255 if images.dtype == np.uint8 else 1
    tensor = torch.tensor(images).permute(0, 3, 1, 2).float().div(scale)
    return tensor.to(device or device_name(), memory_format=torch.channels_last)


def attack(
    logits: Callable[[Tensor], Tensor],
    pixels: Tensor,
    targets: Tensor,
    name: str,
    num_steps: int,
    start: Tensor | None = None,
) -> Tensor:
    """Returns adversarial images; `start` is PGD's first point, None for a random one."""
    momentum, decay = torch.zeros_like(pixels), DECAY if name == "mifgsm" else 0.0
    num_steps = 1 if name == "fgsm" else num_steps
    step = EPSILON / num_steps * (1 if name in ("fgsm", "mifgsm") else RELATIVE_STEP)
    low, high = (pixels - EPSILON).clamp(min=0), (pixels + EPSILON).clamp(max=1)
    x = pixels if start is None else start
    if name == "pgd" and start is None:
        x = (pixels + torch.empty_like(pixels).uniform_(-EPSILON, EPSILON)).clamp(0, 1)
    for _ in range(num_steps):
        x = x.detach().requires_grad_(True)
        loss = F.cross_entropy(logits(x), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        if decay:
            scale = gradient.abs().sum((1, 2, 3), keepdim=True).clamp(min=1e-30)
            gradient = momentum = decay * momentum + gradient / scale
        x = torch.clamp(x.detach() + step * gradient.sign(), low, high)
    return x.detach()


class PyTorch:
    """The PyTorch functions of one network, image size, batch and precision, and their inputs."""

    implementation = "pytorch"

    def __init__(self, net: Network, images: np.ndarray, labels: np.ndarray, variant: str):
        """`net` is copied before use; `variant`: eager or compiled."""
        self._variant = variant
        self._net = net
        self._pixels = to_pixels(images)
        self._targets = torch.tensor(labels).long().to(device_name())

    def job(self, case: Case) -> Job | None:
        """Returns the job of a case; None if this peer lacks it."""
        runs = {"attack": self._attack, "clean_step": self._step, "adversarial_step": self._step}
        if case.task not in runs:
            return None
        run = runs[case.task](case)
        return Job(case, self.implementation, run, synchronize, self._variant, memory_peak)

    def adversarial(self, name: str, num_steps: int, start: np.ndarray | None) -> np.ndarray:
        """Returns adversarial images (B, H, W, 3) from a start (B, H, W, 3); None: the images."""
        net = self._frozen()
        point = self._pixels if start is None else to_pixels(start)
        x = attack(net, self._pixels, self._targets, name, num_steps, point)
        return x.permute(0, 2, 3, 1).float().cpu().numpy()

    def logits(self) -> np.ndarray:
        """Returns logits (B, K) of the images."""
        with torch.no_grad():
            return self._net.eval()(self._pixels).cpu().numpy()

    def _frozen(self) -> Callable[[Tensor], Tensor]:
        return self._compile(copy.deepcopy(self._net).eval().requires_grad_(False))

    def _compile(self, net: nn.Module) -> Callable[[Tensor], Tensor]:
        return torch.compile(net, dynamic=False) if self._variant == "compiled" else net

    def _attack(self, case: Case) -> Callable[[], Any]:
        assert case.attack is not None
        net = self._frozen()
        return functools.partial(
            attack, net, self._pixels, self._targets, case.attack, case.num_steps
        )

    def _step(self, case: Case) -> Callable[[], Any]:
        module = copy.deepcopy(self._net)
        net = self._compile(module)
        optimizer = torch.optim.Adam(module.parameters(), 1e-3)

        def run() -> Tensor:
            examples, targets = self._pixels, self._targets
            if case.task == "adversarial_step":
                module.eval().requires_grad_(False)
                examples = torch.cat([examples, self._attacked(net, case)])
                targets = targets.repeat(2)
                module.train().requires_grad_(True)
            loss = F.cross_entropy(net(examples), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss

        module.train().requires_grad_(True)
        return run

    def _attacked(self, net: Callable[[Tensor], Tensor], case: Case) -> Tensor:
        """Attacks each image; with "all", image i by attack i modulo 4."""
        assert case.attack is not None
        if case.attack != ALL:
            return attack(net, self._pixels, self._targets, case.attack, case.num_steps)
        result = torch.empty_like(self._pixels)
        for i, name in enumerate(ATTACKS):
            share = (self._pixels[i :: len(ATTACKS)], self._targets[i :: len(ATTACKS)])
            result[i :: len(ATTACKS)] = attack(net, *share, name, case.num_steps)
        return result


def synchronize(result: Any = None) -> None:
    """Blocks until the device has finished."""
    del result
    if device_name() == "cuda":
        torch.cuda.synchronize()


def memory_peak() -> tuple[int | None, str | None]:
    """Returns the allocator's peak since the last call; PyTorch has none on a CPU."""
    if device_name() != "cuda":
        return None, None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak, "allocator"


def release() -> None:
    """Frees memory and compiled programs."""
    torch._dynamo.reset()
    if device_name() == "cuda":
        torch.cuda.empty_cache()
