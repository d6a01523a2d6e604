"""The generator G (paper section 2.2, Eq. 1, A.1), and its form for text-to-image, MM-GAT (A.9)."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gat_sweep.gat.condition import Captions, Condition
from gat_sweep.gat.layers import (
    Attention,
    KeysValues,
    MappingLinear,
    SwiGLU,
    add_position,
    attend,
    init_linears,
    merge_heads,
    rms_norm,
    rope_table,
    second_moment_norm,
)
from gat_sweep.gat.spec import GeneratorSpec, NullStyle

MODULATION_GAIN = 0.1  # "all scaling parameters produced from style codes" start small (A.1)
STYLE_MEAN_DECAY = 0.995
NULL_BLOCK = 64  # classes whose styles are computed at once for guidance


def scaled_norm(x_BTD: Tensor, scale_BD: Tensor) -> Tensor:
    """RMSNorm without affine, multiplied by (1 + scale): the de-normalisation by w."""
    return rms_norm(x_BTD) * (1 + scale_BD[:, None])


class GeneratorBlock(nn.Module):
    """Transformer block: x += a1(w) Attn(norm(x) (1+g1(w))); x += a2(w) FFN(norm(x) (1+g2(w)))."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = Attention(width, heads)
        self.ffn = SwiGLU(width)
        self.modulation = nn.Linear(width, 4 * width)

    def forward(self, x_BTD: Tensor, silu_w_BD: Tensor, rope: Tensor) -> Tensor:
        g1_BD, a1_BD, g2_BD, a2_BD = self.modulation(silu_w_BD).chunk(4, dim=-1)
        x_BTD = x_BTD + a1_BD[:, None] * self.attention(scaled_norm(x_BTD, g1_BD), rope)
        return x_BTD + a2_BD[:, None] * self.ffn(scaled_norm(x_BTD, g2_BD))


class CaptionKeys(nn.Module):
    """Caption in the last block, whose output nothing reads: keys and values of its tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = KeysValues(width, heads)
        self.modulation = nn.Linear(width, width)

    def forward(self, c_BND: Tensor, silu_w_BD: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(scaled_norm(c_BND, self.modulation(silu_w_BD)))


class JointBlock(nn.Module):
    """Block of two streams, image and caption, with one attention over the tokens of both (A.9, MM-DiT).

    Each stream is a GeneratorBlock with weights of its own. last: the caption is only read.
    """

    def __init__(self, width: int, heads: int, last: bool):
        super().__init__()
        self.image = GeneratorBlock(width, heads)
        self.caption = CaptionKeys(width, heads) if last else GeneratorBlock(width, heads)

    def forward(
        self, x_BTD: Tensor, silu_w_BD: Tensor, rope: Tensor, c_BND: Tensor, bias_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens of the image and of the caption.

        rope: of as many tokens as a caption may have, none of them rotated, then of the image's T. bias: log of the
        factor of each key, caption first.
        """
        count = c_BND.shape[1]
        g1_BD, a1_BD, g2_BD, a2_BD = self.image.modulation(silu_w_BD).chunk(4, dim=-1)
        q, k, v = self.image.attention.split_heads(scaled_norm(x_BTD, g1_BD), rope[-x_BTD.shape[1] :])
        if isinstance(self.caption, CaptionKeys):
            caption_k, caption_v = self.caption(c_BND, silu_w_BD)
            out = attend(q, torch.cat([caption_k, k], dim=2), torch.cat([caption_v, v], dim=2), bias_BK)
        else:
            h1_BD, b1_BD, h2_BD, b2_BD = self.caption.modulation(silu_w_BD).chunk(4, dim=-1)
            own = self.caption.attention.split_heads(scaled_norm(c_BND, h1_BD), rope[:count])
            q, k, v = (torch.cat(pair, dim=2) for pair in zip(own, (q, k, v), strict=True))
            caption_out, out = attend(q, k, v, bias_BK).split([count, x_BTD.shape[1]], dim=2)
            c_BND = c_BND + b1_BD[:, None] * self.caption.attention.proj(merge_heads(caption_out))
            c_BND = c_BND + b2_BD[:, None] * self.caption.ffn(scaled_norm(c_BND, h2_BD))
        x_BTD = x_BTD + a1_BD[:, None] * self.image.attention.proj(merge_heads(out))
        return x_BTD + a2_BD[:, None] * self.image.ffn(scaled_norm(x_BTD, g2_BD)), c_BND


class OutputLayer(nn.Module):
    """Maps tokens to the pixels of their patches: norm, scale by w, linear to p*p*C ("RGB layer" of Fig. 2)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.modulation = nn.Linear(width, width)
        self.linear = nn.Linear(width, out)

    def forward(self, x_BTD: Tensor, silu_w_BD: Tensor) -> Tensor:
        return self.linear(scaled_norm(x_BTD, self.modulation(silu_w_BD)))


class Generator(nn.Module):
    """Maps a latent code z, and a class or a caption, to K image levels; level K is the image."""

    style_mean: Tensor
    sentence_mean: Tensor
    position: Tensor
    rope: Tensor

    def __init__(self, spec: GeneratorSpec):
        super().__init__()
        self.spec = spec
        self.checkpointed = 0  # how many leading blocks the backward pass recomputes, to save memory
        width, z_dim, classes = spec.width, spec.z_dim, spec.classes
        grid = spec.side // spec.patch
        self.class_embedding = nn.Embedding(classes, z_dim) if classes else None
        self.mapping = nn.Sequential(
            MappingLinear(2 * z_dim if spec.conditional else z_dim, width), nn.SiLU(), MappingLinear(width, width)
        )
        if spec.text_width:
            self.sentence_embedding = MappingLinear(spec.text_width, z_dim)
            self.word_embedding = nn.Linear(spec.text_width, width)
            last = spec.depth - 1
            self.blocks = nn.ModuleList(JointBlock(width, spec.heads, i == last) for i in range(spec.depth))
        else:
            self.blocks = nn.ModuleList(GeneratorBlock(width, spec.heads) for _ in range(spec.depth))
        pixels = spec.patch**2 * spec.channels
        self.outputs = nn.ModuleList(OutputLayer(width, pixels) for _ in range(spec.levels))
        add_position(self, spec)
        rope = rope_table(width // spec.heads, grid, extra_tokens=2 * spec.text_tokens)  # room for `mixed` captions
        self.register_buffer("rope", rope, persistent=False)
        # Running mean of w per class (one row without classes), for truncation.
        self.register_buffer("style_mean", torch.zeros(max(classes, 1), width))
        if spec.text_width:  # running mean of the captions' sentences, for guidance
            self.register_buffer("sentence_mean", torch.zeros(spec.text_width))
        self.init_weights()

    def init_weights(self) -> None:
        """Initialisation (A.1).

        linears                       Xavier-uniform, bias 0
        mapping                       the same, stored 100x larger, used at 0.01
        modulation (g, a, s)          Xavier-uniform with gain 0.1, bias 0
        class embedding               N(0, 0.02)
        sentence embedding            as the mapping; its output is normalised
        """
        init_linears(self)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)
        for name, layer in self.named_modules():
            if name.endswith("modulation"):
                assert isinstance(layer, nn.Linear)
                nn.init.xavier_uniform_(layer.weight, gain=MODULATION_GAIN)

    def style(self, z_BZ: Tensor, y: Condition) -> Tensor:
        """The style w_BD of latent codes z, and of classes [B] or captions (None when unconditional)."""
        code = second_moment_norm(z_BZ)
        if isinstance(y, Captions):
            code = torch.cat([self._embedded(y.sentence), code], dim=-1)
        elif self.class_embedding is not None:
            code = torch.cat([second_moment_norm(self.class_embedding(y)), code], dim=-1)
        return self.mapping(code)

    def _embedded(self, sentence_BW: Tensor) -> Tensor:
        """Sentences in the place of class embeddings, [B, z_dim]."""
        return second_moment_norm(self.sentence_embedding(second_moment_norm(sentence_BW)))

    def null_style(self, z_BZ: Tensor, null: NullStyle = "paper") -> Tensor:
        """w_null_BD: the mapping of (class, z) averaged over all classes, for guidance.

        With captions, which cannot be enumerated, it is the mapping of (mean sentence, z) (our choice).
        null: "official" is as in the released code, which normalises both halves across the classes instead of across
        their own entries, so the z half becomes nearly its sign.
        """
        if self.spec.text_width:
            assert null == "paper", "the released code has no captions"
            mean_BZ = self._embedded(self.sentence_mean).expand(len(z_BZ), -1)
            return self.mapping(torch.cat([mean_BZ, second_moment_norm(z_BZ)], dim=-1))
        assert self.class_embedding is not None, "guidance needs classes or captions"
        code_BZ, class_CZ = second_moment_norm(z_BZ), second_moment_norm(self.class_embedding.weight)
        if null == "official":
            code_BZ = second_moment_norm(z_BZ[..., None])[..., 0]
            class_CZ = second_moment_norm(self.class_embedding.weight.T).T
        total = torch.zeros(len(z_BZ), self.style_mean.shape[1], device=z_BZ.device)
        for block_CZ in class_CZ.split(NULL_BLOCK):  # B x 1,000 styles at once would not fit in memory
            shape = (len(block_CZ), *code_BZ.shape)
            pairs = torch.cat([block_CZ[:, None].expand(shape), code_BZ.expand(shape)], dim=-1)
            total += self.mapping(pairs).sum(dim=0)
        return total / self.spec.classes

    def synthesize(self, w: Tensor, y: Condition = None) -> Tensor:
        """Image levels [K, B, C, Y, X] from styles; level k is the sum of outputs 1..k (Eq. 1).

        w: [B, D], or [L, B, D] with a style for each block; an output has the style of the block before it.
        y: only captions are read, whose words take part in every block.
        """
        silu_w = F.silu(w).unbind() if w.ndim == 3 else [F.silu(w)] * len(self.blocks)
        x_BTD = self.position.expand(w.shape[-2], -1, -1)
        caption: tuple[Tensor, ...] = ()
        if isinstance(y, Captions):
            assert y.words.shape[1] <= 2 * self.spec.text_tokens, "more tokens than the networks were made for"
            bias_BK = torch.cat([y.weight.log(), y.weight.new_zeros(x_BTD.shape[:2])], dim=1)
            # Blocks add to it, in float32 as to the image's tokens, which are float32 by their positions.
            caption = self.word_embedding(rms_norm(y.words)).float(), bias_BK
        stage = len(self.blocks) // self.spec.levels
        image = None
        levels = []
        for i, (block, silu_w_BD) in enumerate(zip(self.blocks, silu_w, strict=True)):
            recomputed = i < self.checkpointed and torch.is_grad_enabled()
            run = partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False) if recomputed else block
            if caption:
                x_BTD, c_BND = run(x_BTD, silu_w_BD, self.rope, *caption)
                caption = c_BND, bias_BK
            else:
                x_BTD = run(x_BTD, silu_w_BD, self.rope)
            if (i + 1) % stage == 0:
                out = self.unpatchify(self.outputs[i // stage](x_BTD, silu_w_BD).float())
                image = out if image is None else image + out
                levels.append(image)
        return torch.stack(levels)

    def unpatchify(self, x: Tensor) -> Tensor:
        """Image [B, C, Y, X] from tokens [B, T, p*p*C] (patch rows, patch columns, channels)."""
        patch, grid = self.spec.patch, self.spec.side // self.spec.patch
        x = x.unflatten(2, (patch, patch, -1)).unflatten(1, (grid, grid))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def forward(self, z_BZ: Tensor, y: Condition) -> tuple[Tensor, Tensor]:
        """Training forward: (levels [K, B, C, Y, X], w_BD)."""
        w_BD = self.style(z_BZ, y)
        return self.synthesize(w_BD, y), w_BD

    @torch.no_grad()
    def styled(
        self,
        z_BZ: Tensor,
        y: Condition,
        psi: float = 1.0,
        guidance: float = 1.0,
        null: NullStyle = "paper",
    ) -> Tensor:
        """The style w_BD for sampling; truncation and guidance are applied here, before the backbone.

        psi: w' = mean + psi (w - mean), 1 = off. guidance s: w' = null + s (w - null), 1 = off. null: as in null_style.
        """
        w_BD = self.style(z_BZ, y)
        if psi != 1.0:
            mean_BD = self.style_mean[y if isinstance(y, Tensor) else torch.zeros(len(z_BZ), dtype=torch.long)]
            w_BD = mean_BD + psi * (w_BD - mean_BD)
        if guidance != 1.0:
            null_BD = self.null_style(z_BZ, null)
            w_BD = null_BD + guidance * (w_BD - null_BD)
        return w_BD

    @torch.no_grad()
    def sample(
        self,
        z_BZ: Tensor,
        y: Condition,
        psi: float = 1.0,
        guidance: float = 1.0,
        null: NullStyle = "paper",
    ) -> Tensor:
        """Images [B, C, Y, X] in one forward of the backbone; the options are those of `styled`."""
        return self.synthesize(self.styled(z_BZ, y, psi, guidance, null), y)[-1]
