"""A small CLIP with random weights and a made-up vocabulary, written as the library writes real ones."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.utils import logging

POSITIONS = 12
SIDE = 32


def clip_tokenizer() -> CLIPTokenizer:
    """All bytes, and the words cat and dog."""
    letters = sorted(ByteLevel.alphabet())
    merges = [("a", "t</w>"), ("c", "at</w>"), ("o", "g</w>"), ("d", "og</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)


def save_clip(folder: Path, seed: int = 0, projection: int = 32, end: int | None = None, **text: Any) -> CLIPModel:
    """Writes one. projection: width of embeddings. end: eos_token_id of the config (default: the tokenizer's)."""
    tokenizer = clip_tokenizer()
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "projection_dim": projection}
    special = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    special["eos_token_id"] = tokenizer.eos_token_id if end is None else end
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    config = CLIPConfig(
        text_config={**shape, **size, **special, **text},
        vision_config={**shape, "image_size": SIDE, "patch_size": 8},
        projection_dim=projection,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():  # biases are zero at the start, and small weights see only the mean of a picture
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return model
