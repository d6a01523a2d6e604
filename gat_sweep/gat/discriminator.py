"""The discriminator D (paper section 2.2, A.1)."""

import torch
from torch import Tensor, nn

from gat_sweep.gat.condition import Captions, Condition
from gat_sweep.gat.layers import (
    NORM_EPS,
    Attention,
    MappingLinear,
    SwiGLU,
    add_position,
    embed_patches,
    in_float32,
    init_linears,
    rms_norm,
    rope_table,
    second_moment_norm,
)
from gat_sweep.gat.spec import DiscriminatorSpec

LAYER_SCALE = 0.1


class DiscriminatorBlock(nn.Module):
    """x += ls1 Attn(norm(x)); x += ls2 FFN(norm(x)), with learned LayerScale vectors."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads)
        self.scale1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.norm2 = nn.RMSNorm(width, eps=NORM_EPS)
        self.ffn = SwiGLU(width)
        self.scale2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x_BTD: Tensor, rope: Tensor, readers: int | None = None) -> Tensor:
        """Tokens [B, T, D], or [B, readers, D]. readers: how many leading tokens to return (default: all)."""
        h_BTD = self.attention(rms_norm(x_BTD) * self.norm1.weight, rope, readers)
        x_BTD = x_BTD[:, :readers] + self.scale1 * h_BTD
        return x_BTD + self.scale2 * self.ffn(rms_norm(x_BTD) * self.norm2.weight)


class Discriminator(nn.Module):
    """Maps K perturbed image levels, and a class or a caption, to one logit; it can also project its tokens."""

    position: Tensor
    rope: Tensor

    def __init__(self, spec: DiscriminatorSpec):
        super().__init__()
        self.spec = spec
        width, patch, class_width = spec.width, spec.patch, spec.class_width
        self.patch_embedding = nn.Conv2d(spec.levels * spec.channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.blocks = nn.ModuleList(DiscriminatorBlock(width, spec.heads) for _ in range(spec.depth))
        self.head_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, class_width if spec.conditional else 1)
        if spec.classes:
            self.class_embedding = nn.Embedding(spec.classes, class_width)
        if spec.text_width:
            self.sentence_embedding = MappingLinear(spec.text_width, class_width)
        if spec.conditional:
            self.class_mapping = nn.Sequential(
                MappingLinear(class_width, class_width), nn.SiLU(), MappingLinear(class_width, class_width)
            )
        self.projector = None
        if spec.teacher_width:
            self.projector = nn.Sequential(
                nn.Linear(width, spec.projector_width),
                nn.SiLU(),
                nn.Linear(spec.projector_width, spec.projector_width),
                nn.SiLU(),
                nn.Linear(spec.projector_width, spec.teacher_width),
            )
        grid = spec.side // patch
        add_position(self, spec)
        self.register_buffer("rope", rope_table(width // spec.heads, grid, extra_tokens=1), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Initialisation (A.1).

        linears, patch embedding      Xavier-uniform, bias 0
        class mapping                 the same, stored 100x larger, used at 0.01
        [cls], class embedding        N(0, 0.02)
        sentence embedding            N(0, 0.02) at its output, as of a class
        LayerScale                    0.1 (DiscriminatorBlock)
        """
        init_linears(self)
        nn.init.normal_(self.cls_token, std=0.02)
        if self.spec.classes:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        if self.spec.text_width:
            layer = self.sentence_embedding
            nn.init.normal_(layer.weight, std=0.02 / layer.rate / self.spec.text_width**0.5)

    def forward(self, x: Tensor, y: Condition, align_first: int = 0) -> tuple[Tensor, Tensor | None]:
        """Logits and projected tokens.

        x: [N, K*C, Y, X]. y: classes [B] or captions; when N is a multiple of B, every group of B has the same.
        align_first: how many leading samples have their tokens projected for the alignment loss.
        Returns logits [N] in float32, and tokens [align_first, 1+T, teacher_width] ([cls] first) or None.
        """
        x_NTD = embed_patches(x, self.patch_embedding) + self.position
        x_NTD = torch.cat([self.cls_token.expand(len(x_NTD), -1, -1).to(x_NTD.dtype), x_NTD], dim=1)
        for block in self.blocks[:-1]:
            x_NTD = block(x_NTD, self.rope)
        # Only [cls] is read from the last block, except for the samples that are aligned.
        last, aligned_NTD = self.blocks[-1], x_NTD[:align_first]
        cls_ND = last(x_NTD[align_first:], self.rope, readers=1)[:, 0]
        if align_first:
            aligned_NTD = last(aligned_NTD, self.rope)
            cls_ND = torch.cat([aligned_NTD[:, 0], cls_ND])
        with in_float32(x):  # the penalties are differences of nearly equal logits
            logits = self.head(rms_norm(cls_ND.float()) * self.head_norm.weight)
            if self.spec.conditional:
                vector = self.class_mapping(self._embedded(y))
                logits = (logits.unflatten(0, (-1, len(vector))) * vector).flatten(0, 1)
        projected = None
        if align_first:
            assert self.projector is not None, "built without an alignment projector"
            projected = self.projector(aligned_NTD)
        return logits.sum(dim=-1), projected

    def _embedded(self, y: Condition) -> Tensor:
        """Embeddings of classes, or of captions' sentences, [B, class_width]."""
        if isinstance(y, Captions):
            return self.sentence_embedding(second_moment_norm(y.sentence.float()))
        return self.class_embedding(y)
