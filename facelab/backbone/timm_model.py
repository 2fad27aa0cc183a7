"""Any network of timm as a backbone: (B,3,H,W) in [−1,1] → (B,D) embeddings, not normalised.

timm's network up to its own pooling, then the output layer of the field (ArcFace, 2019, option "E"): BN → dropout →
linear → BN. The first norm brings features of any network, a transformer's or a convolutional one's, to one scale
around zero, where a cosine tells most; the last one gives the embedding a scale that is the same for every network.
"""

import difflib
import math
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from facelab.backbone.stages import Stage
from facelab.backbone.timm_groups import group, units_of

PARTS = 4  # stages of a network whose groups are single blocks
MOST_STAGES = 7  # more groups than these (EfficientNet's) are single blocks


class TimmModel(nn.Module):
    """A network of timm, pooled, and an embedding layer.

    Args:
        model: timm's name, with or without the tag of its weights: resnet50, vit_small_patch16_224, resnet50.a1_in1k.
        embedding_size: D.
        dropout: probability of dropping a pooled feature before the embedding layer, in [0,1).
        drop_path: probability of skipping the last residual block in training (stochastic depth), in [0,1).
        pretrained: whether timm's own weights are fetched (a download the first time). They come from ImageNet, whose
            mean and standard deviation differ a little from our [−1,1].
        image_size: H = W of the input in pixels; transformers get position embeddings of this size.

    Raises:
        ValueError: an unknown model, one that cannot take images of this size or has no drop path, weights that cannot
            be fetched, or another argument out of range.
    """

    def __init__(
        self, model: str, embedding_size: int, dropout: float, drop_path: float, pretrained: bool, image_size: int
    ):
        super().__init__()
        if embedding_size < 1:
            raise ValueError(f"backbone.embedding_size is {embedding_size}: give at least 1 (512 is usual)")
        for name, value in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= value < 1:
                raise ValueError(f"backbone.{name} is {value}: give a probability of at least 0 and below 1")
        if image_size < 16:
            raise ValueError(f"backbone.image_size is {image_size} pixels: give at least 16 (112 is usual)")
        _check_name(model)
        self.model, self.embedding_size = model, embedding_size
        with torch.device("meta"):
            body, arguments = _choose(model, drop_path, image_size)
            features = _features(body, model, image_size)
        if not torch.empty(0).is_meta:
            body = _fetch(model, arguments) if pretrained else timm.create_model(model, **arguments)
        self.body = body
        _spare_the_cpu(self.body)
        self.norm = nn.BatchNorm1d(features)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features, embedding_size)
        # A free gain behind the last linear layer would only repeat what that layer can do: fixed to 1, as in IResNet.
        self.features = nn.BatchNorm1d(embedding_size)
        self.features.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,D), in the precision of the parameters even under autocast."""
        x = self.body(images)
        x = self.fc(self.dropout(self.norm(x.to(self.norm.weight.dtype))))
        # The last norm decides the embedding's scale; in half precision its variance would lose three digits.
        return self.features(x.to(self.features.weight.dtype))

    def stages(self) -> list[Stage]:
        """See `facelab.backbone.stages`: timm's own groups, those of its layer-wise rates; blocks in four parts."""
        groups, late = group(self.body)
        inner = sorted(set(groups.values()) - {late})
        stem, *inner = inner or [late]
        parts = len(inner) if len(inner) <= MOST_STAGES else PARTS
        cuts = [len(inner) * part // parts for part in range(parts + 1)] if inner else []
        members = {group: number for number, (a, b) in enumerate(pairwise(cuts)) for group in inner[a:b]}
        members |= {stem: -1, late: parts}
        units: dict[int, list[nn.Module]] = {number: [] for number in range(-1, parts + 1)}
        own: dict[int, list[nn.Parameter]] = {number: [] for number in units}
        for part in units_of(self.body, groups):
            if isinstance(part, nn.Parameter):
                own[members[groups[part]]].append(part)
            else:
                units[members[groups[next(part.parameters())]]].append(part)
        units[parts] += [self.norm, self.dropout, self.fc, self.features]
        names = {-1: "stem", parts: "neck"}
        return [
            Stage(names.get(number, f"stage{number + 1}"), tuple(units[number]), tuple(own[number]), self._to_map)
            for number in units
        ]

    def _to_map(self, output: Any) -> Tensor:
        """(B,C,h,w), (B,h,w,C) or tokens of a square (B,N,C) → (B,C,h,w)."""
        if isinstance(output, Tensor) and output.dim() == 4:
            return output.permute(0, 3, 1, 2) if getattr(self.body, "output_fmt", "NCHW") == "NHWC" else output
        if isinstance(output, Tensor) and output.dim() == 3:
            tokens = output[:, getattr(self.body, "num_prefix_tokens", 0) :]
            side = math.isqrt(tokens.shape[1])
            if side * side == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (side, side))
        raise ValueError(f"backbone.model={self.model}: its stages give no feature maps; take another model")


def _check_name(model: str) -> None:
    name = str(model).partition(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.6)
        hint = f"near are {', '.join(near)}" if near else "timm.list_models() gives all names"
        raise ValueError(f"backbone.model={model}: timm {timm.__version__} has no such model; {hint}")
    if name != model and model not in (tagged := timm.list_pretrained(f"{name}.*")):
        known = ", ".join(tagged) or "none"
        raise ValueError(
            f"backbone.model={model}: timm {timm.__version__} has no such weights of {name}; known: {known}"
        )


def _choose(model: str, drop_path: float, image_size: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network on the meta device, and the arguments that its kind takes: not every one is told the image size."""
    arguments: dict[str, Any] = {"num_classes": 0, "img_size": image_size}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    while True:
        try:
            body = _create(model, arguments)
            break
        except TypeError as error:  # "… got an unexpected keyword argument 'img_size'"
            refused = next((name for name in ("img_size", "drop_path_rate") if f"'{name}'" in str(error)), None)
            if refused not in arguments:
                raise
            del arguments[refused]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(_cannot(model, image_size, error)) from error
    if drop_path and not any(isinstance(m, DropPath) and m.drop_prob for m in body.modules()):
        raise ValueError(f"backbone.drop_path is {drop_path}, but {model} has no drop path: set backbone.drop_path=0")
    return body, arguments


def _create(model: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(model, **arguments)
    except (NotImplementedError, RuntimeError) as error:
        # Some networks, more of them in older releases, compute a number in their constructor, which meta cannot.
        if "meta" not in str(error):
            raise
        with torch.device("cpu"):
            return timm.create_model(model, **arguments).to("meta")


def _features(body: nn.Module, model: str, image_size: int) -> int:
    """F of the pooled features (B,F), found out by images without pixels."""
    body.eval()
    try:
        patch = max(getattr(getattr(body, "patch_embed", None), "patch_size", (1,)))
        if image_size % patch:  # timm would leave out the rest of the image
            raise ValueError(f"it cuts them into patches of {patch}")
        with torch.no_grad():
            pooled = body(torch.empty(2, 3, image_size, image_size, device="meta"))
    except Exception as error:  # each network has its own way to say so
        raise ValueError(_cannot(model, image_size, error)) from error
    body.train()
    if not isinstance(pooled, Tensor) or pooled.dim() != 2:
        raise ValueError(f"backbone.model={model}: gives no vector for an image; take a model for classification")
    return pooled.shape[1]


def _cannot(model: str, image_size: int, error: Exception) -> str:
    own = timm.get_pretrained_cfg(model)
    published = f", was published for {own.input_size[-1]}×{own.input_size[-1]}" if own else ""
    return (
        f"backbone.model={model}: does not take {image_size}×{image_size} images{published} "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): take another data.size or model"
    )


def _fetch(model: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(model, pretrained=True, **arguments)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"backbone.pretrained: weights of {model} cannot be fetched ({str(error).splitlines()[0]}): set it to "
            "false, or give a file, backbone.weights=…"
        ) from error


class _Skip:
    """Takes every n-th row and column of a convolution's input."""

    def __init__(self, step: tuple[int, ...]):
        self.step = step

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0][:, :, :: self.step[0], :: self.step[1]]


def _spare_the_cpu(body: nn.Module) -> None:
    """Narrow strided 1×1 convolutions skip rows and columns first, and then have stride 1: the same result.

    With torch 2.15 their backward pass writes outside its memory on a CPU (channels last, less than 16 channels, odd
    batch); the first layers of FastViT and MobileOne are of this kind.
    """
    for module in body.modules():
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.stride == (1, 1):
            continue
        if min(module.in_channels, module.out_channels) < 16 and module.padding in ((0, 0), 0, "valid"):
            module.register_forward_pre_hook(_Skip(tuple(module.stride)))
            module.stride = (1, 1)
