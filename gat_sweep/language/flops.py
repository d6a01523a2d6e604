"""FLOPs of text encoders in closed form: 2 per multiply-add, matrix products only, one caption."""

WORDLLAMA = "wordllama"  # its table of 32,000 tokens looks up and adds, so it has no products
WORDLLAMA_WIDTH = 256
WORDLLAMA_PARAMS = 32_000 * WORDLLAMA_WIDTH


def clip_text_flops(width: int, layers: int, ffn: int, tokens: int) -> int:
    """FLOPs of CLIP's text tower for a caption of `tokens` tokens, padding included.

    width, layers, ffn: hidden_size, num_hidden_layers and intermediate_size of its config. Each layer has four square
    products, two of attention over all pairs of tokens, and two of the FFN; the projection is of one token.
    """
    layer = 2 * tokens * width * (4 * width + 2 * ffn) + 2 * 2 * tokens * tokens * width
    return layers * layer + 2 * width * width
