"""FLOPs in closed form: 2 per multiply-add, matrix products only, one sample.

The counts equal those of torch's FlopCounterMode on meta tensors (tested). Elementwise work is not counted, nor is
the recomputation inside the backward pass of fused attention.
"""

from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec, ffn_width


def _block(width: int, tokens: int) -> tuple[int, int]:
    """FLOPs of one transformer block: (linear layers, attention products)."""
    linear = 2 * tokens * width * (3 * width + width + 3 * ffn_width(width))
    return linear, 2 * 2 * tokens * tokens * width


def _generator_attention(spec: GeneratorSpec) -> int:
    """FLOPs of the attention products of G. Words are also queries, except in the last block."""
    keys = spec.tokens + spec.text_tokens
    return 2 * 2 * spec.width * ((spec.depth - 1) * keys * keys + spec.tokens * keys)


def _embedded_text(spec: GeneratorSpec) -> int:
    """FLOPs of G's first layers of words and sentence."""
    return 2 * spec.text_width * (spec.text_tokens * spec.width + spec.z_dim)


def _caption_stream(spec: GeneratorSpec) -> int:
    """FLOPs of the linear layers of G's caption stream. The last block reads only keys and values of it."""
    d = spec.width
    block = _block(d, spec.text_tokens)[0] + 2 * d * 4 * d
    last = 2 * spec.text_tokens * d * 2 * d + 2 * d * d
    return _embedded_text(spec) + (spec.depth - 1) * block + last if spec.text_width else 0


def generator_forward(spec: GeneratorSpec) -> int:
    """FLOPs of one forward of G: mapping, blocks with their modulation, caption stream, K outputs."""
    d, tokens = spec.width, spec.tokens
    mapping = 2 * d * ((2 if spec.conditional else 1) * spec.z_dim + d)
    blocks = spec.depth * (_block(d, tokens)[0] + 2 * d * 4 * d) + _generator_attention(spec)
    outputs = spec.levels * (2 * d * d + 2 * tokens * d * spec.patch**2 * spec.channels)
    return mapping + blocks + _caption_stream(spec) + outputs


def discriminator_parts(spec: DiscriminatorSpec) -> dict[str, int]:
    """FLOPs of one forward of D, split into parts that an iteration uses a different number of times.

    `unread_*` is the part of the last block for tokens other than [cls], which only the alignment loss reads:
    their queries, attention outputs and FFN.
    """
    d, tokens, cw, pw = spec.width, spec.tokens, spec.class_width, spec.projector_width
    linear, attention = _block(d, tokens + 1)
    return {
        "patch_embedding": 2 * tokens * spec.levels * spec.channels * spec.patch**2 * d,
        "linear": spec.depth * linear + 2 * d * (cw if spec.conditional else 1),
        "attention": spec.depth * attention,
        "unread_linear": 2 * tokens * d * (d + d + 3 * ffn_width(d)),
        "unread_attention": 2 * 2 * tokens * (tokens + 1) * d,
        "class_vector": 2 * 2 * cw * cw if spec.conditional else 0,
        "sentence_embedding": 2 * spec.text_width * cw,
        "projector": 2 * (tokens + 1) * (d * pw + pw * pw + pw * spec.teacher_width) if spec.teacher_width else 0,
    }


def discriminator_forward(spec: DiscriminatorSpec) -> int:
    """FLOPs of one forward of D with all its tokens and the alignment projector."""
    return sum(count for name, count in discriminator_parts(spec).items() if not name.startswith("unread"))


def iteration(generator: GeneratorSpec, discriminator: DiscriminatorSpec) -> dict[str, int]:
    """FLOPs per image of one training iteration (one D step and one G step) as the engine runs it, itemised.

    Both steps use one forward of G. A backward costs twice a forward, but the D step needs no gradient of its
    images. The input gradient of the G step costs one forward in the linear layers and two in attention, which
    has no weights. The class vector is computed once per call and label. Captions need no gradient.
    """
    g = generator_forward(generator)
    part = discriminator_parts(discriminator)
    linear, attention = part["linear"] - part["unread_linear"], part["attention"] - part["unread_attention"]
    forward = part["patch_embedding"] + linear + attention
    scored = 2 * part["patch_embedding"] + 3 * (linear + attention)
    aligned = 2 * part["patch_embedding"] + 3 * (part["linear"] + part["attention"])
    return {
        "g_forward": g,
        # An unconditional mapping starts from z, which needs no gradient; a class embedding does.
        "g_backward": 2 * g
        - _embedded_text(generator)
        - (0 if generator.conditional else 2 * generator.z_dim * generator.width),
        "d_step_real": aligned if discriminator.teacher_width else scored,
        "d_step_fake": scored,
        "d_step_penalty_real": scored,
        "d_step_penalty_fake": scored,
        "d_step_class_vector": 3 * part["class_vector"] + 2 * part["sentence_embedding"],
        "d_step_alignment_projector": 3 * part["projector"],
        "g_step_d_real": forward + part["class_vector"] + part["sentence_embedding"],
        "g_step_d_fake": forward + part["class_vector"] + part["sentence_embedding"],
        "g_step_d_input_gradient": part["patch_embedding"] + linear + 2 * attention,
    }


def iteration_attention(generator: GeneratorSpec, discriminator: DiscriminatorSpec) -> int:
    """The part of `iteration` that is attention products, softmax(q k^T) v."""
    g = _generator_attention(generator)
    part = discriminator_parts(discriminator)
    read = part["attention"] - part["unread_attention"]
    real = part["attention"] if discriminator.teacher_width else read
    return 3 * g + 3 * (real + 3 * read) + (2 + 2) * read  # G; four inputs of the D step; the G step


def round_counts(generator: GeneratorSpec, discriminator: DiscriminatorSpec) -> dict[str, int]:
    """FLOPs per image of an iteration, in whole forwards; a backward counts as two.

    straightforward, 5 G + 20 D: each step generates its own fakes (1 + 3) and recomputes every block of G (+ 1).
    The D step scores four inputs (3 each) and recomputes them (+ 4). The G step scores real (1) and fake (1),
    needs the input gradient (1) and recomputes (+ 1).
    shared, 3 G + 15 D: nothing is computed twice.
    """
    g, d = generator_forward(generator), discriminator_forward(discriminator)
    return {"straightforward_5g_20d": 5 * g + 20 * d, "shared_3g_15d": 3 * g + 15 * d}
