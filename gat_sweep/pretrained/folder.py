"""Folders of networks in the layout of diffusers: save_pretrained, from_pretrained.

    config.json                               shapes of the generator, its tokenizer and training
    diffusion_pytorch_model.safetensors       its weights: the EMA, with the mean styles
    discriminator/                            config.json and weights of the discriminator
    official.safetensors                      for an imported checkpoint: tensors that we do not build (official.py)
    README.md                                 the model card

config.json is written last and has the digest of every file of weights, which is checked when weights are loaded.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gat_sweep.config import TrialConfig
from gat_sweep.data.condition import captioned, trial_encoder
from gat_sweep.data.dataset import Dataset, Encoded
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, children, write
from gat_sweep.files.weights import check_finite
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec, NetworkSpec
from gat_sweep.language.encoder import TextIdentity
from gat_sweep.pretrained.card import MEASURES, About, model_card
from gat_sweep.run.checkpoint import Checkpoint, check_text_encoder, read_network, read_trial
from gat_sweep.run.saved import CHECKPOINT_FILE
from gat_sweep.run.table import read_rows

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"  # diffusers' name
DISCRIMINATOR = "discriminator"
OFFICIAL_FILE = "official.safetensors"
CARD = "README.md"
EXPECTED = "give a folder that `gat-sweep export` wrote, or a trial's checkpoints/step_*"
# Settings of a trained model that may change: the places of its files.
CHANGEABLE = ("data.path", "data.tokenizer", "text.folder")

Spec = TypeVar("Spec", bound=NetworkSpec)


@dataclass(frozen=True)
class Pretrained:
    """Networks in float32 on the CPU; the generator is the EMA."""

    generator: Generator
    discriminator: Discriminator | None
    about: About


@dataclass(frozen=True)
class Folder:
    """A folder that save_pretrained wrote, with the content of its config.json."""

    place: Place
    spec: GeneratorSpec
    about: About

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors in a file of weights. Raises UserError when it is missing or has changed since it was written."""
        if name not in self.about.files:
            raise UserError(f"{self.place} has no {name}; write the folder again with it")
        file = self.place / name
        content = _read(file)
        if hashlib.sha256(content).hexdigest() != self.about.files[name]:
            raise UserError(f"{file} has changed since it was written (sha256 differs); copy or export it again")
        try:
            return load(content)
        except SafetensorError:
            raise UserError(f"{file} is not a safetensors file; copy or export it again") from None

    def discriminator_spec(self) -> DiscriminatorSpec:
        """Shape of the discriminator. Raises UserError when its config.json is missing or not valid."""
        file = self.place / DISCRIMINATOR / CONFIG
        return _parsed_spec(DiscriminatorSpec, "GATDiscriminator", _read(file), file)


def save_pretrained(
    folder: Place,
    generator: Generator,
    about: About | None = None,
    discriminator: Discriminator | None = None,
    official: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes networks to a new folder; the same networks give the same bytes.

    official: tensors for official.safetensors.
    Raises UserError when the folder is not empty.
    """
    check_new(folder)
    contents = {WEIGHTS: _packed(generator.state_dict())}
    if discriminator is not None:
        contents[f"{DISCRIMINATOR}/{WEIGHTS}"] = _packed(discriminator.state_dict())
    if official is not None:
        contents[OFFICIAL_FILE] = _packed(official)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    about = replace(about or About(), files=digests)
    if discriminator is not None:
        contents[f"{DISCRIMINATOR}/{CONFIG}"] = _json("GATDiscriminator", asdict(discriminator.spec))
    contents[CARD] = model_card(generator, discriminator, about).encode()
    contents[CONFIG] = _json("GATGenerator", asdict(generator.spec) | asdict(about))
    for name, content in contents.items():
        write(folder / name, content)


def from_pretrained(folder: Place, discriminator: bool = False) -> Pretrained:
    """Loads networks that save_pretrained wrote, in float32 on the CPU.

    discriminator: whether to load it as well.
    Raises UserError when a file is missing or damaged, or does not fit config.json.
    """
    opened = open_folder(folder)
    generator = _filled(Generator, opened.spec, opened.tensors(WEIGHTS), folder / WEIGHTS)
    network = None
    if discriminator:
        name = f"{DISCRIMINATOR}/{WEIGHTS}"
        tensors = opened.tensors(name)
        network = _filled(Discriminator, opened.discriminator_spec(), tensors, folder / name)
    return Pretrained(generator, network, opened.about)


def open_folder(folder: Place) -> Folder:
    """A folder that save_pretrained wrote. Raises UserError when it has no valid config.json."""
    file = folder / CONFIG
    if not file.exists():
        raise UserError(f"{folder} has no {CONFIG}; {EXPECTED}")
    content = _read(file)
    spec = _parsed_spec(GeneratorSpec, "GATGenerator", content, file)
    try:
        about = TypeAdapter(About).validate_json(content, strict=True)
    except ValidationError as error:
        raise UserError(_damaged(file, error)) from None
    return Folder(folder, spec, about)


def is_checkpoint(source: Place) -> bool:
    """Whether a folder is a trial's checkpoint (or looks like one), and not a folder of save_pretrained."""
    return source.name.startswith("step_") or (source / CHECKPOINT_FILE).exists()


def from_trial(folder: Place, settings: Mapping[str, Any], discriminator: bool = False) -> Pretrained:
    """Loads the networks of a trial's checkpoint, with the facts that its run knows about them.

    settings: data.path, data.tokenizer and text.folder, if they differ from the trial's config.
    Raises UserError as read_trial does, and for other settings.
    """
    for key in settings:
        if key not in CHANGEABLE:
            raise UserError(f"--set {key}: a trained model allows only {', '.join(CHANGEABLE)}")
    config, checkpoint, dataset = read_trial(folder, settings)
    generator = Generator(config.generator_spec)
    read_network(checkpoint, "ema", generator)
    network = None
    if discriminator:
        network = Discriminator(config.discriminator_spec)
        read_network(checkpoint, "discriminator", network)
    return Pretrained(generator, network, _about_trial(config, checkpoint, dataset))


def check_new(folder: Place) -> None:
    """Raises UserError when a folder to write to is not empty."""
    found = children(folder)
    if found:
        raise UserError(f"{folder} already has {found[0].name}; give a new folder, or delete that one")


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], file: object) -> None:
    """Raises UserError unless the tensors have exactly the expected names and shapes, and floating-point types."""
    for name in expected:
        if name not in found:
            raise UserError(f"{file} lacks '{name}'; give a file with all weights of these networks")
    for name in found:
        if name not in expected:
            raise UserError(f"{file} has '{name}', which these networks do not have; give a file without it")
    for name, shape in expected.items():
        tensor = found[name]
        if tensor.shape != shape or not tensor.is_floating_point():
            had = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            raise UserError(f"{file}: '{name}' is {had}, but the other shapes need {list(shape)}; give another")


def shapes(kind: type[nn.Module], spec: NetworkSpec) -> dict[str, torch.Size]:
    """Shapes in the state dict of a network; no memory is allocated for it."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in kind(spec).state_dict().items()}


def _about_trial(config: TrialConfig, checkpoint: Checkpoint, dataset: Dataset) -> About:
    trial = checkpoint.folder.parents[1]
    names = dataset.shards.manifest.classes if isinstance(dataset, Encoded) and config.data.classes else ()
    table = checkpoint.folder.parents[3] / "table" / f"{trial.name}.parquet"
    rows = read_rows(table) if table.exists() else []
    # The value of another step belongs to other weights.
    row = next((row for row in rows if row["step"] == checkpoint.step and row["value"] is not None), None)
    evaluation = None
    if row:
        columns = ("metric", "value", "n", "reference", *MEASURES)
        evaluation = {name: row[name] for name in columns if row[name] is not None}
        evaluation["protocol"] = json.loads(row["protocol"])
    return About(
        # The digest of the manifest identifies the tokenizer; the source is the place where the trial found it.
        tokenizer=replace(dataset.identity, source=config.data.tokenizer or dataset.identity.source),
        text=_text_identity(config, checkpoint, dataset),
        class_names=names,
        training={
            "recipe": config.recipe,
            "trial": trial.name,
            "config": config.digest(),
            "seed": config.seed,
            "step": checkpoint.step,
            "images": checkpoint.facts["images"],
            "batch": config.train.batch,
            "learning_rates": {"G": config.lr_g, "D": config.lr_d},
            "ema_decay": config.train.ema_decay,
            "data": {"name": dataset.name, "digest": dataset.digest, "images": len(dataset)},
        },
        evaluation=evaluation,
    )


def _text_identity(config: TrialConfig, checkpoint: Checkpoint, dataset: Dataset) -> TextIdentity | None:
    """The text encoder of a trial, with the place where it lies as its name. Raises UserError if it is another one."""
    if config.text is None:
        return None
    found = trial_encoder(config)
    assert found is not None
    captioned(dataset, found)
    check_text_encoder(checkpoint, found, str(checkpoint.folder))
    return replace(found.identity, name=config.text.folder or config.text.name)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def _json(kind: str, values: dict[str, Any]) -> bytes:
    head = {"_class_name": kind, "_gat_sweep_version": version("gat-sweep")}
    return (json.dumps(head | values, indent=2) + "\n").encode()


def _read(file: Place) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file} is missing; copy the whole folder, or export it again") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None


def _parsed_spec(kind: type[Spec], class_name: str, content: bytes, file: Place) -> Spec:
    try:
        values = TypeAdapter(dict[str, Any]).validate_json(content)
        if values.get("_class_name") != class_name:
            found = values.get("_class_name")
            kind_found = f"a {found}" if found else "something else"
            raise UserError(f"{file} describes {kind_found}, not a {class_name}; {EXPECTED}")
        zeros = ("classes", "teacher_width", "text_width", "text_tokens")  # 0: the networks have none
        numbers = [name.name for name in fields(kind) if name.name not in zeros]
        for name in numbers:
            if isinstance(values.get(name), int) and values[name] < 1:
                raise UserError(f"{file}: {name} is {values[name]}; copy or export it again")
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        raise UserError(_damaged(file, error)) from None


def _damaged(file: Place, error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{file} is not a valid {CONFIG}: {f'{where}: ' if where else ''}{first['msg']}; copy or export it again"


def _filled(kind: type[nn.Module], spec: NetworkSpec, tensors: dict[str, Tensor], file: Place) -> Any:
    if spec.depth > len(tensors):  # checked first, because config.json may claim a network of any depth
        raise UserError(f"{file} has {len(tensors)} tensors, too few for {spec.depth} blocks; export it again")
    check_tensors(tensors, shapes(kind, spec), file)
    check_finite(tensors, file)
    network = kind(spec)
    network.load_state_dict(tensors)
    return network


def shapes_text(generator: Generator) -> str:
    """Shapes of a generator, in one line."""
    return ", ".join(f"{name} {value}" for name, value in asdict(generator.spec).items())
