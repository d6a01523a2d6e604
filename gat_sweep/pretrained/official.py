"""Import and export of checkpoints of the authors' released code (github.com/hse1032/GAT, train.py).

Their checkpoint is a .pt with the state dicts `generator`, `discriminator` and `ema`, and with `optG`, `optD`, `args`,
`steps`, `wallclock_time` and `wandb_run_id`. Import to a folder of save_pretrained and export from it keep every bit of
the three state dicts. They also keep `steps` and the arguments that their generate.py reads. Optimizers and other
records are dropped, so training cannot continue from an imported checkpoint, neither here nor in the released code.
A file with `ema` or `generator` alone, or with one state dict of G and nothing else, is imported too.

Their training learns the position tables, so these are weights (model.positions is trained); a table that is still the
constant of the start is a fixed one. Their state dicts also have tensors that our networks compute or do not have: the
rotary tables (checked against ours), and in G a patch embedder whose output is multiplied by zero. official.safetensors
keeps these, and all of `generator`, which is not the EMA.
"""

import argparse
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gat_sweep.data.tokenizer import load_tokenizer
from gat_sweep.errors import UserError
from gat_sweep.files.storage import Place, write
from gat_sweep.files.weights import check_finite
from gat_sweep.gat.discriminator import Discriminator
from gat_sweep.gat.generator import Generator
from gat_sweep.gat.layers import rope_table, sincos_position_table
from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec, NetworkSpec
from gat_sweep.pretrained.card import NOT_AVERAGED, About
from gat_sweep.pretrained.folder import (
    DISCRIMINATOR,
    OFFICIAL_FILE,
    WEIGHTS,
    check_new,
    check_tensors,
    from_trial,
    is_checkpoint,
    open_folder,
    save_pretrained,
    shapes,
)
from gat_sweep.pretrained.official_file import read_official
from gat_sweep.run.checkpoint import read_network, read_trial

# Our names -> theirs; all other names are the same.
OFFICIAL_NAMES_G = [
    (r"^position$", "pos_embed"),
    (r"^style_mean$", "w_avg"),
    (r"^class_embedding\.", "y_embedder.embedding_table."),
    (r"^mapping\.", "latent_embedder."),
    (r"^outputs\.(\d+)\.modulation\.", r"final_layers.\1.adaLN_modulation.1."),
    (r"^outputs\.", "final_layers."),
    (r"\.modulation\.", ".adaLN_modulation.1."),
    (r"\.attention\.", ".attn."),
    (r"\.ffn\.w_in\.", ".mlp.w12."),
    (r"\.ffn\.w_out\.", ".mlp.w3."),
]
OFFICIAL_NAMES_D = [
    (r"^position$", "pos_embed"),
    (r"^class_embedding\.", "y_embedder.embedding_table."),
    (r"^class_mapping\.", "y_embedder.latent_embedder."),
    (r"^patch_embedding\.", "x_embedder.proj."),
    (r"^head_norm\.", "final_layer.0."),
    (r"^head\.", "final_layer.1."),
    (r"^projector\.", "proj."),
    (r"\.scale1$", ".ls_attn"),
    (r"\.scale2$", ".ls_mlp"),
    (r"\.attention\.", ".attn."),
    (r"\.ffn\.w_in\.", ".mlp.w12."),
    (r"\.ffn\.w_out\.", ".mlp.w3."),
]

LEVELS = 4  # of their networks, for any depth
POSITION = "pos_embed"
TABLES = (POSITION, "feat_rope.freqs_cos", "feat_rope.freqs_sin")
TABLE_ERROR = 1e-5  # largest difference between two computations of a table in float32

State = dict[str, Tensor]


def official_name(name: str, rules: list[tuple[str, str]]) -> str:
    """Name of one of our parameters in the released code."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def import_official(path: Path, folder: Place, say: Callable[[str], None], tokenizer: str | None = None) -> None:
    """Writes a checkpoint of the released code as a folder of save_pretrained, with the EMA as its generator.

    Shapes are inferred from the tensors. Without an EMA, the weights of `generator` are written.
    tokenizer: the tokenizer of the latents, which tensors do not tell (default: not recorded, then sampling needs
    --tokenizer).
    say: gets a line for each part that the file lacks.
    Raises UserError when the file is not such a checkpoint, its tensors do not fit together or are not finite, or the
    tokenizer does not fit them.
    """
    check_new(folder)
    found = read_official(path)
    main = "ema" if "ema" in found else "generator"
    generators = {part: found[part] for part in (main, "generator") if part in found}
    positions = _positions(generators.values(), f"{path}: {main}")
    spec_g = _generator_spec(found[main], positions, f"{path}: {main}")
    for part, state in generators.items():
        _check(state, Generator, spec_g, f"{path}: {part}")
    discriminator = None
    if "discriminator" in found:
        where = f"{path}: discriminator"
        positions = _positions([found["discriminator"]], where)
        spec_d = _discriminator_spec(found["discriminator"], spec_g, positions, where)
        _check(found["discriminator"], Discriminator, spec_d, where)
        discriminator = Discriminator(spec_d)
        discriminator.load_state_dict(_ours(found["discriminator"], Discriminator, spec_d), assign=True)
    identity = None
    if tokenizer is not None:
        identity = load_tokenizer(tokenizer, channels=spec_g.channels).identity
        if identity.channels != spec_g.channels:
            raise UserError(
                f"tokenizer '{tokenizer}' has {identity.channels} channels, but {path} makes {spec_g.channels}; give "
                "the one that it was trained with"
            )
    generator = Generator(spec_g)
    # assign=True keeps tensors of another precision unchanged.
    generator.load_state_dict(_ours(found[main], Generator, spec_g), assign=True)
    kept = {f"ema.{name}": found[main][name] for name in _fixed(Generator, spec_g)}
    if main == "ema" and "generator" in found:
        kept |= {f"generator.{name}": tensor for name, tensor in found["generator"].items()}
    if discriminator is not None:
        names = _fixed(Discriminator, discriminator.spec)
        kept |= {f"discriminator.{name}": found["discriminator"][name] for name in names}
    facts: dict[str, Any] = {name: found[name] for name in ("steps", "args") if name in found}
    training = {"code": "github.com/hse1032/GAT", "file": path.name}
    if "steps" in found:
        training["step"] = found["steps"]
    if main != "ema":
        training["weights"] = NOT_AVERAGED
        say(f"{path} has no EMA; the weights of its generator are used")
    elif "generator" not in found:
        say(f"{path} has no weights of the generator beside the EMA; an export writes the EMA in their place")
    if discriminator is None:
        say(f"{path} has no discriminator")
    about = About(tokenizer=identity, training=training, official=facts)
    save_pretrained(folder, generator, about, discriminator, kept)


def export_official(source: Place, path: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Writes a checkpoint that the released code can load.

    For an imported folder it writes exactly the imported tensors; for others `_fixed` adds tensors that our networks
    do not have.
    source: a folder of save_pretrained, or a trial's checkpoint, for which settings are as in from_trial.
    say: gets a line about values that are not from the source.
    Raises UserError when the file already exists, or the released code has no such networks.
    """
    if path.exists():
        raise UserError(f"{path} already exists; give another name, or delete it")
    content: dict[str, Any]
    if is_checkpoint(source):
        content = _of_trial(source, settings)
    else:
        opened = open_folder(source)
        imported = OFFICIAL_FILE in opened.about.files
        if not imported:
            _check_theirs(opened.spec)
        kept = opened.tensors(OFFICIAL_FILE) if imported else {}
        ema = _theirs(opened.tensors(WEIGHTS), OFFICIAL_NAMES_G)
        ema |= _below(kept, "ema") if imported else _fixed(Generator, opened.spec)
        content = {"ema": ema, "generator": _below(kept, "generator")}
        if not content["generator"]:
            content["generator"] = ema
            say("the folder has one set of weights of the generator; it is written as both 'ema' and 'generator'")
        weights = f"{DISCRIMINATOR}/{WEIGHTS}"
        if weights in opened.about.files:
            state = _theirs(opened.tensors(weights), OFFICIAL_NAMES_D)
            state |= _below(kept, "discriminator") if imported else _fixed(Discriminator, opened.discriminator_spec())
            content["discriminator"] = state
        else:
            say("the folder has no discriminator; their generate.py does not need it")
        content |= (opened.about.official or {}) if imported else {"steps": opened.about.training.get("step", 0)}
        if "args" in content:
            content["args"] = argparse.Namespace(**content["args"])
    if "args" not in content:
        say("for this file, give --model, --resolution and --num-classes to generate.py of the released code")
    file = io.BytesIO()
    torch.save(content, file)
    write(path, file.getvalue())


def _of_trial(source: Place, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All three networks of a trial's checkpoint, with the released code's names."""
    trial = from_trial(source, settings, discriminator=True)
    assert trial.discriminator is not None
    _check_theirs(trial.generator.spec)
    raw = Generator(trial.generator.spec)
    read_network(read_trial(source, settings)[1], "generator", raw)
    networks: dict[str, Generator | Discriminator] = {
        "generator": raw,
        "discriminator": trial.discriminator,
        "ema": trial.generator,
    }
    content: dict[str, Any] = {}
    for part, network in networks.items():
        kind, spec = type(network), network.spec
        content[part] = _theirs(network.state_dict(), _rules(kind)) | _fixed(kind, spec)
    return content | {"steps": trial.about.training["step"]}


def _check_theirs(spec: NetworkSpec) -> None:
    """Raises UserError unless the released code can build such networks."""
    if spec.text_width:
        raise UserError("the released code has no networks with captions; export one trained with classes")
    if not spec.classes:
        raise UserError("the released code has no unconditional networks; export one trained with classes")
    if spec.levels != LEVELS:
        raise UserError(
            f"the released code only has networks with {LEVELS} levels, but these have {spec.levels}; export others"
        )


def _fixed(kind: type[nn.Module], spec: NetworkSpec) -> State:
    """Tensors that their state dict of such a network has and ours does not.

    The tables are computed like ours. The patch embedder of G, whose output they multiply by zero, is initialised as
    in their code (Xavier-uniform as a linear layer, bias 0), from seed 0.
    """
    grid = spec.side // spec.patch
    cos, sin = rope_table(spec.width // spec.heads, grid).unbind(-1)
    fixed = {
        "feat_rope.freqs_cos": cos.repeat_interleave(2, dim=-1),
        "feat_rope.freqs_sin": sin.repeat_interleave(2, dim=-1),
    }
    if spec.positions == "fixed":
        fixed[POSITION] = sincos_position_table(spec.width, grid)
    if issubclass(kind, Generator):
        weight = torch.empty(spec.width, spec.channels * spec.patch**2)
        nn.init.xavier_uniform_(weight, generator=torch.Generator().manual_seed(0))
        fixed["x_embedder.proj.weight"] = weight.view(spec.width, spec.channels, spec.patch, spec.patch)
        fixed["x_embedder.proj.bias"] = torch.zeros(spec.width)
    return fixed


def _check(state: State, kind: type[nn.Module], spec: NetworkSpec, where: str) -> None:
    """Raises UserError unless their state dict has all tensors of such a network, finite, and the tables we compute."""
    fixed = _fixed(kind, spec)
    expected = {name: tensor.shape for name, tensor in fixed.items()}
    expected |= {official_name(name, _rules(kind)): shape for name, shape in shapes(kind, spec).items()}
    check_tensors(state, expected, where)
    check_finite(state, where)
    for name in fixed.keys() & set(TABLES):
        error = (state[name].float() - fixed[name]).abs().max().item()
        if not error <= max(TABLE_ERROR, torch.finfo(state[name].dtype).eps):
            raise UserError(f"{where}.{name} differs by {error:.2g} from the fixed table; give another file")


def _positions(states: Iterable[State], where: str) -> str:
    """Whether position tables are trained in any of the state dicts: other than the constants that they start as."""
    for state in states:
        _, tokens, width = _shape(state, POSITION, 3, where)
        table = sincos_position_table(width, math.isqrt(tokens))
        given = state[POSITION].float()
        limit = max(TABLE_ERROR, torch.finfo(state[POSITION].dtype).eps)
        if given.shape != table.shape or not (given - table).abs().max() <= limit:
            return "trained"
    return "fixed"


def _generator_spec(state: State, positions: str, where: str) -> GeneratorSpec:
    classes, z_dim = _shape(state, "y_embedder.embedding_table.weight", 2, where)
    width, channels, patch, _ = _shape(state, "x_embedder.proj.weight", 4, where)
    shared = _shared(state, width, patch, where) | {"positions": positions}
    levels = _count(state, "final_layers")
    return _spec(GeneratorSpec, where, **shared, channels=channels, classes=classes, levels=levels, z_dim=z_dim)


def _discriminator_spec(state: State, generator: GeneratorSpec, positions: str, where: str) -> DiscriminatorSpec:
    """Shapes of D. Levels and channels, of which D's tensors show only the product, are from the generator.

    Raises UserError when inputs, side or classes differ from those of the generator.
    """
    classes, class_width = _shape(state, "y_embedder.embedding_table.weight", 2, where)
    width, inputs, patch, _ = _shape(state, "x_embedder.proj.weight", 4, where)
    shared = _shared(state, width, patch, where) | {"positions": positions}
    for what, ours, its in [
        ("inputs", inputs, generator.levels * generator.channels),
        ("side", shared["side"], generator.side),
        ("classes", classes, generator.classes),
    ]:
        if ours != its:
            raise UserError(f"{where} has {what} {ours}, but the generator has {its}; give networks trained together")
    projector = {}
    if "proj.0.weight" in state:
        projector["projector_width"] = _shape(state, "proj.0.weight", 2, where)[0]
        projector["teacher_width"] = _shape(state, "proj.4.weight", 2, where)[0]
    return _spec(
        DiscriminatorSpec,
        where,
        **shared,
        channels=generator.channels,
        classes=classes,
        levels=generator.levels,
        class_width=class_width,
        **projector,
    )


def _shared(state: State, width: int, patch: int, where: str) -> dict[str, Any]:
    _, tokens, _ = _shape(state, POSITION, 3, where)
    (head,) = _shape(state, "blocks.0.attn.q_norm.weight", 1, where)
    grid = math.isqrt(tokens)
    if grid**2 != tokens or width % head:
        raise UserError(
            f"{where}: {tokens} positions are not a square grid, or head width {head} does not divide width {width}; "
            "give another file"
        )
    return {
        "width": width,
        "depth": _count(state, "blocks"),
        "heads": width // head,
        "side": grid * patch,
        "patch": patch,
    }


def _shape(state: State, name: str, dimensions: int, where: str) -> list[int]:
    if name not in state:
        raise UserError(f"{where} lacks '{name}', which gives shapes; give a complete checkpoint")
    shape = list(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{where}: '{name}' is {shape}; it needs {dimensions} dimensions, none 0; give another file")
    return shape


def _count(state: State, list_name: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{list_name}.")})


def _spec(kind: type[Any], where: str, **values: Any) -> Any:
    try:
        return kind(**values)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where}: {error}") from None


def _rules(kind: type[nn.Module]) -> list[tuple[str, str]]:
    return OFFICIAL_NAMES_G if issubclass(kind, Generator) else OFFICIAL_NAMES_D


def _ours(state: State, kind: type[nn.Module], spec: NetworkSpec) -> State:
    return {name: state[official_name(name, _rules(kind))] for name in shapes(kind, spec)}


def _theirs(state: Mapping[str, Tensor], rules: list[tuple[str, str]]) -> State:
    return {official_name(name, rules): tensor.contiguous() for name, tensor in state.items()}


def _below(tensors: State, part: str) -> State:
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
