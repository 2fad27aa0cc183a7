"""Vision transformers for faces, as InsightFace trains them: (B,3,H,W) in [−1,1] → (B,D) embeddings, not normalised.

Patches become tokens (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021), pre-norm blocks of attention and MLP
follow, and, other than in classification, no class token and no pooling: the tokens of all places together go into the
embedding layer, as the last map of a residual network does (arcface_torch, `vit.py`). In training a share of the tokens
is left out of the blocks and replaced by a learned one before the embedding. The names of the parameters are those of
InsightFace's checkpoints.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from facelab.backbone.stages import Stage


class Attention(nn.Module):
    """Self-attention of all tokens, in several heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,width) → the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B,heads,N,width/heads)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear → ReLU6 → linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,width) → the same shape."""
        return self.fc2(F.relu6(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); training leaves each addition out for some images."""

    def __init__(self, width: int, heads: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,width) → the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Each patch by itself, through one linear map; what is left over on the right and below is not looked at."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,N,width), N = ⌊H/patch⌋·⌊W/patch⌋, row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Patches, blocks, and an embedding layer over the tokens of all places.

    Args:
        patch: side of a patch in pixels; 9 in InsightFace's (12×12 patches of 112 pixels, the last 4 are left over), 8
            covers all of 112 with 14×14.
        width: length of a token.
        depth: number of blocks.
        heads: attention heads, which share `width`.
        drop_path: probability of leaving out each half of the last block for an image in training, in [0,1); it rises
            in a straight line from 0 in the first block (Huang et al., "Deep Networks with Stochastic Depth", 2016).
        mask: share of the tokens that an image is trained without, in [0,1).
        embedding_size: D.
        image_size: H = W of the input in pixels.

    Raises:
        ValueError: `heads` do not divide `width`, a patch is larger than the image, or an argument is out of range.
    """

    def __init__(
        self,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        drop_path: float,
        mask: float,
        embedding_size: int,
        image_size: int,
    ):
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("heads", heads), ("embedding_size", embedding_size)):
            if value < 1:
                raise ValueError(f"backbone.{name} is {value}: give at least 1")
        if not 1 <= patch <= image_size:
            raise ValueError(f"backbone.patch is {patch}: give 1 to {image_size} pixels, the image's size (8 or 9)")
        if width % heads:
            raise ValueError(f"backbone.heads is {heads}, which does not divide backbone.width={width}")
        for name, share in (("drop_path", drop_path), ("mask", mask)):
            if not 0 <= share < 1:
                raise ValueError(f"backbone.{name} is {share}: give a probability of at least 0 and below 1")
        self.embedding_size = embedding_size
        self.side = image_size // patch
        places = self.side**2
        self._places: Tensor | None = None
        self.kept = int(places * (1 - mask))
        if not self.kept:
            raise ValueError(f"backbone.mask is {mask}, which leaves none of {places} patches: give a smaller share")
        self.patch_embed = PatchEmbed(patch, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        # Without masking it is nowhere used, but it has a place in the published files.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=mask > 0)
        self.blocks = nn.Sequential(
            *(Block(width, heads, drop_path * place / max(depth - 1, 1)) for place in range(depth))
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(places * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        # A free gain behind the last linear layer would only repeat what that layer can do: fixed to 1, as in IResNet.
        self.feature[3].weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) → (B,D), in the precision of the parameters even under autocast."""
        x = self.patch_embed(images) + self.pos_embed
        x = self._masked(x) if self.training and self.kept < x.shape[1] else self.norm(self.blocks(x))
        inner, inner_norm, outer, outer_norm = self.feature
        # Norms over the batch decide scales; in half precision their variance would lose three digits.
        x = inner_norm(inner(x.flatten(1)).to(inner.weight.dtype))
        return outer_norm(outer(x).to(outer.weight.dtype))

    def _masked(self, x: Tensor) -> Tensor:
        """Tokens (B,N,width) → those behind the blocks, the same shape: other places for each image are left out."""
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)
        places = order[:, : self.kept, None].expand(-1, -1, x.shape[2])
        self._places = places  # for maps of what is in between
        seen = self.norm(self.blocks(x.gather(1, places)))
        self._places = None
        return self.mask_token.to(seen.dtype).expand(x.shape).scatter(1, places, seen)

    def stages(self) -> list[Stage]:
        """See `facelab.backbone.stages`: the blocks are four stages, as nearly equal as can be."""
        blocks, parts = list(self.blocks), min(4, len(self.blocks))
        cuts = [len(blocks) * part // parts for part in range(parts + 1)]
        return [
            Stage("patch_embed", (self.patch_embed,), (self.pos_embed,)),
            *(
                Stage(f"blocks {start} to {stop - 1}", tuple(blocks[start:stop]), to_map=self._to_map)
                for start, stop in pairwise(cuts)
            ),
            Stage("neck", (self.norm, self.feature), (self.mask_token,)),
        ]

    def _to_map(self, tokens: Tensor) -> Tensor:
        """(B,N,width) → (B,width,h,w); where an image went without patches stands the mean of its others."""
        if self._places is not None:
            whole = tokens.mean(1, keepdim=True).expand(-1, self.pos_embed.shape[1], -1)
            tokens = whole.scatter(1, self._places, tokens)
        return tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
