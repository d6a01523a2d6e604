"""The model card of an exported folder."""

from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import nn

from gat_sweep.data.tokenizer import TokenizerIdentity
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.language.encoder import TextIdentity

NOT_AVERAGED = "not an average (the file has no EMA)"  # training["weights"] of an imported checkpoint without an EMA
MEASURES = (
    *("kernel_distance", "kernel_distance_std", "precision", "recall", "fd_infinity", "fd_infinity_se"),
    *("retrieval", "retrieval_low", "retrieval_high", "retrieval_chance", "clip_score", "clip_score_se"),
)


@dataclass(frozen=True)
class About:
    """Content of config.json in addition to the shapes of the generator."""

    tokenizer: TokenizerIdentity | None = None  # None if not known
    text: TextIdentity | None = None  # the text encoder of networks with captions
    class_names: tuple[str, ...] = ()  # empty if not known, or without classes
    training: dict[str, Any] = field(default_factory=dict)  # recipe, trial, step, data and so on
    evaluation: dict[str, Any] | None = None  # of exactly these weights: metric, value, n, reference, protocol
    official: dict[str, Any] | None = None  # for an imported checkpoint: its counters and arguments
    files: dict[str, str] = field(default_factory=dict)  # sha256 by file of weights; save_pretrained sets it


def model_card(generator: Generator, discriminator: Discriminator | None, about: About) -> str:
    """Text of README.md, which model hubs show."""
    spec, training = generator.spec, about.training
    front: dict[str, Any] = {
        "library_name": "gat-sweep",
        "pipeline_tag": "text-to-image" if spec.text_width else "unconditional-image-generation",
        "tags": ["gan", "gat", "transformer", "image-generation", "arxiv:2509.24935"],
    }
    if "data" in training:
        front["datasets"] = [training["data"]["name"]]
    sizes = (
        f"{spec.depth} blocks of width {spec.width}, {spec.heads} heads, patch {spec.patch}, {_parameters(generator)}"
    )
    conditional = f"{spec.classes} classes" if spec.classes else "unconditional"
    if about.text:
        text = about.text
        conditional = f"captions of {text.tokens} tokens of width {text.width} ({text.name} {text.digest})"
    tokenizer = "not recorded; give it with --tokenizer"
    if about.tokenizer:
        tokenizer = f"{about.tokenizer.source} {about.tokenizer.digest}".strip()
    facts = [
        ("generator", f"{sizes} ({training.get('weights', 'EMA of the weights')})"),
        ("discriminator", _parameters(discriminator) if discriminator else "not in this folder"),
        ("latents", f"{spec.channels} x {spec.side} x {spec.side}, {conditional}, latent code of {spec.z_dim}"),
        ("tokenizer", tokenizer),
        *((name.replace("_", " "), _plain(value)) for name, value in training.items() if name != "weights"),
    ]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        "# GAT",
        "",
        'A generative adversarial transformer of "Scalable GANs with Transformers" (arXiv 2509.24935): one forward of',
        "the generator makes one image in the latent space of the tokenizer.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
        "## Measured",
        "",
        *_measured_lines(about.evaluation),
        "",
        "## Sampling",
        "",
        "```",
        f"gat-sweep sample FOLDER --out samples --count 64 --psi 0.7{' --text TEXT' if spec.text_width else ''}",
        "```",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "import torch",
        "from gat_sweep.pretrained import from_pretrained",
        *(["from gat_sweep.language.load import load_text_encoder"] if about.text else []),
        "",
        'generator = from_pretrained(Path("FOLDER")).generator',
        "z = torch.randn(4, generator.spec.z_dim)",
        *_condition_lines(generator, about),
        f"latents = generator.sample(z, y, psi=0.7)  # [4, {spec.channels}, {spec.side}, {spec.side}]",
        "```",
        "",
        "The weights are safetensors only.",
    ]
    return "\n".join(lines) + "\n"


def _condition_lines(generator: Generator, about: About) -> list[str]:
    """Code that makes y, the condition of four pictures."""
    classes = generator.spec.classes
    if about.text:
        return [
            f'encoder = load_text_encoder("{about.text.name}", {about.text.tokens})',
            'y = encoder.encode(torch.from_numpy(encoder.ids(["TEXT"] * 4)[0]))',
        ]
    return [f"y = {f'torch.randint({classes}, (4,))' if classes else None}"]


def _measured_lines(evaluation: dict[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["These weights have not been evaluated."]
    metric = evaluation["metric"]
    lines = [
        f"`{metric}` = {evaluation['value']:.4g} with {evaluation['n']:,} samples against {evaluation['reference']}."
    ]
    if metric != "fid":
        extractor = evaluation["protocol"]["extractor"]
        lines.append(f"This is a Frechet distance in the features of {extractor}. It cannot be compared with an FID.")
    lines += [f"`{name}` = {evaluation[name]:.4g}." for name in MEASURES if name in evaluation]
    protocol = {key: value for key, value in evaluation["protocol"].items() if value is not None}
    return [*lines, "", "Protocol: " + "; ".join(f"{key} {_plain(value)}" for key, value in protocol.items()) + "."]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _parameters(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()):,} parameters"
