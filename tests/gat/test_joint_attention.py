"""MM-GAT (A.9): two streams, one attention, against a plain reference; padding; networks without captions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gat_sweep.gat.condition import Captions, mixed
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.ema import update_ema, update_style_mean
from gat_sweep.gat.generator import CaptionKeys, Generator, GeneratorBlock, JointBlock
from gat_sweep.gat.layers import rope_table
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec

SHAPE = {"width": 16, "depth": 2, "heads": 2, "side": 4, "channels": 3, "patch": 2, "classes": 0, "levels": 2}
TEXT = {"text_width": 12, "text_tokens": 5}


def captions(batch: int, lengths: list[int] | None = None, seed: int = 0) -> Captions:
    random = torch.Generator().manual_seed(seed)
    words = torch.randn(batch, TEXT["text_tokens"], TEXT["text_width"], generator=random)
    counts = torch.tensor(lengths or [5] * batch)
    weight = (torch.arange(TEXT["text_tokens"]) < counts[:, None]).float()
    return Captions(words, weight, torch.randn(batch, TEXT["text_width"], generator=random))


def generator(**changes: int) -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorSpec(**{**SHAPE, **TEXT, **changes}, z_dim=8))


def norm(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def plain_joint_block(block: JointBlock, x: Tensor, c: Tensor, w: Tensor, rope: Tensor, lengths: list[int]) -> Tensor:
    """The image stream of one caption at a time, head by head, with padding left out instead of masked."""
    eps = torch.finfo(torch.float32).eps
    out = torch.empty_like(x)
    for i, length in enumerate(lengths):
        words, style = c[i, :length], w[i]

        def parts(stream: GeneratorBlock | CaptionKeys, tokens: Tensor, turn: Tensor | None, g: Tensor) -> list[Tensor]:
            h = norm(tokens, 1e-6) * (1 + g)
            if isinstance(stream, CaptionKeys):
                k, v = (h @ stream.attention.kv.weight.T + stream.attention.kv.bias).chunk(2, -1)
                gains, q = [stream.attention.k_norm.weight], None
            else:
                q, k, v = (h @ stream.attention.qkv.weight.T + stream.attention.qkv.bias).chunk(3, -1)
                gains = [stream.attention.k_norm.weight, stream.attention.q_norm.weight]
            found = [v]
            for part, gain in zip([k, q], gains, strict=False):
                heads = [norm(head, eps) * gain for head in part.chunk(2, -1)]
                if turn is not None:
                    pairs = [torch.view_as_complex(head.unflatten(-1, (-1, 2)).contiguous()) for head in heads]
                    heads = [torch.view_as_real(pair * torch.view_as_complex(turn)).flatten(-2) for pair in pairs]
                found.append(torch.cat(heads, -1))
            return found

        g1, a1, g2, a2 = (style @ block.image.modulation.weight.T + block.image.modulation.bias).chunk(4)
        v, k, q = parts(block.image, x[i], rope[-x.shape[1] :], g1)
        first = (style @ block.caption.modulation.weight.T + block.caption.modulation.bias)[: x.shape[-1]]
        v_text, k_text = parts(block.caption, words, None, first)[:2]
        heads = []
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            scores = q[:, part] @ torch.cat([k_text, k])[:, part].T / 8**0.5
            heads.append(scores.softmax(-1) @ torch.cat([v_text, v])[:, part])
        attention = torch.cat(heads, -1)
        y = x[i] + a1 * (attention @ block.image.attention.proj.weight.T + block.image.attention.proj.bias)
        gate, value = ((norm(y, 1e-6) * (1 + g2)) @ block.image.ffn.w_in.weight.T + block.image.ffn.w_in.bias).chunk(
            2, -1
        )
        out[i] = y + a2 * ((F.silu(gate) * value) @ block.image.ffn.w_out.weight.T + block.image.ffn.w_out.bias)
    return out


def test_joint_attention_equals_a_plain_reference() -> None:
    torch.manual_seed(1)
    x, c, w = torch.randn(3, 4, 16), torch.randn(3, 5, 16), torch.randn(3, 16)
    lengths = [5, 2, 0]
    present = torch.arange(5) < torch.tensor(lengths)[:, None]
    bias = torch.cat([present.float().log(), torch.zeros(3, 4)], 1)
    rope = rope_table(8, 2, extra_tokens=5)
    for last in (False, True):
        block = JointBlock(16, 2, last)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        found, _ = block(x, w, rope, c, bias)
        assert torch.allclose(found, plain_joint_block(block, x, c, w, rope, lengths), atol=2e-5)


def test_padding_changes_nothing() -> None:
    network = generator(text_tokens=9)
    discriminator = Discriminator(DiscriminatorSpec(**SHAPE, **TEXT, class_width=8))
    short = captions(3, [5, 3, 0])
    garbage = torch.full((3, 4, 12), 7.0)
    longer = Captions(torch.cat([short.words, garbage], 1), F.pad(short.weight, (0, 4)), short.sentence)
    changed = Captions(torch.where(short.weight[..., None] > 0, short.words, 9.0), short.weight, short.sentence)
    z = torch.randn(3, 8)
    fewer = generator()
    fewer.load_state_dict(network.state_dict())  # the number of tokens has no weights
    expected, _ = fewer(z, short)
    for other, g in ((longer, network), (changed, fewer)):
        assert torch.allclose(g(z, other)[0], expected, atol=1e-6)
    x = torch.randn(3, 6, 4, 4)
    assert torch.equal(discriminator(x, changed)[0], discriminator(x, short)[0])
    every = Captions(short.words, torch.ones_like(short.weight), short.sentence)
    assert not torch.allclose(fewer(z, every)[0][:, 1:], expected[:, 1:], atol=1e-4)


def test_every_weight_and_both_parts_of_a_caption_matter() -> None:
    network, y = generator(), captions(2)
    levels, w = network(torch.randn(2, 8), y)
    (levels.square().sum() + w.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    z, other = torch.randn(2, 8), captions(2, seed=1)
    before = network(z, y)[0]
    for changed in (Captions(other.words, y.weight, y.sentence), Captions(y.words, y.weight, other.sentence)):
        assert not torch.allclose(network(z, changed)[0], before, atol=1e-5)
    discriminator = Discriminator(DiscriminatorSpec(**SHAPE, **TEXT, class_width=8))
    x = torch.randn(4, 6, 4, 4)
    scores = discriminator(x, y)[0]  # two groups with the same two captions
    assert torch.allclose(discriminator(x[2:], y)[0], scores[2:], atol=1e-6)
    assert not torch.allclose(discriminator(x, other)[0], scores, atol=1e-6)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    network, y, z = generator(), captions(2, [5, 2]), torch.randn(2, 8)
    grads = []
    for network.checkpointed in (0, 2):
        network.zero_grad()
        network(z, y)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_guidance_and_truncation_lead_away_from_the_means_over_captions() -> None:
    network, y, z = generator(), captions(64, seed=3), torch.randn(64, 8)
    for _ in range(2000):
        update_style_mean(network, network.style(z, y), y)
    unit = y.sentence / y.sentence.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(network.sentence_mean, unit.mean(0), atol=1e-3)
    w = network.style(z, y)
    assert torch.allclose(network.style_mean[0], w.mean(0), atol=1e-3)
    mean = Captions(y.words, y.weight, network.sentence_mean.expand(64, -1))
    null = network.style(z, mean)
    assert torch.allclose(network.styled(z, y, guidance=1.5), null + 1.5 * (w - null), atol=1e-6)
    assert torch.allclose(network.styled(z, y, psi=0.0), network.style_mean.expand(64, -1), atol=1e-6)
    ema = generator()
    update_ema(ema, network, 0.5)
    assert torch.equal(ema.sentence_mean, network.sentence_mean)


def test_a_mixture_begins_at_one_caption_and_ends_at_the_other() -> None:
    network, start, end, z = generator(), captions(3, [5, 2, 1]), captions(3, [1, 4, 5], seed=9), torch.randn(3, 8)
    for part, whole in ((0.0, start), (1.0, end)):
        found = network(z, mixed(start, end, torch.full((3,), part)))[0]
        assert torch.allclose(found, network(z, whole)[0], atol=1e-5)
    same = network(z, mixed(start, start, torch.full((3,), 0.3)))[0]  # a caption with itself is the caption
    assert torch.allclose(same, network(z, start)[0], atol=1e-5)
