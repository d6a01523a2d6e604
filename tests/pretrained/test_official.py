"""Checkpoints of the released code: imported, equal outputs, exported bit for bit; and files that are not such ones."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.processes import Gat
from helpers.trials import REFERENCE, checkpoint_of, networks, tiny_trial
from safetensors.torch import load_file

from gat_sweep.errors import UserError
from gat_sweep.pretrained.folder import from_pretrained, save_pretrained
from gat_sweep.pretrained.official import OFFICIAL_NAMES_G, export_official, import_official, official_name
from gat_sweep.run.checkpoint import open_checkpoint
from gat_sweep.text import silent

PARTS = ("generator", "discriminator", "ema")


def sincos(width: int, grid: int) -> torch.Tensor:
    """MAE's table, written down a second time: columns in the first half of the channels, rows in the second."""
    table = np.zeros((grid * grid, width))
    for t in range(grid * grid):
        for half, position in enumerate((t % grid, t // grid)):
            for i in range(width // 4):
                angle = position / 10000 ** (i / (width // 4))
                table[t, half * width // 2 + i] = np.sin(angle)
                table[t, half * width // 2 + width // 4 + i] = np.cos(angle)
    return torch.from_numpy(table).float()[None]


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(REFERENCE)


def released(reference: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A checkpoint as the released train.py saves it: `ema` computes the reference values, `generator` does not."""
    random = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    states = {
        part: {k.removeprefix(prefix): t.clone() for k, t in reference.items() if k.startswith(prefix)}
        for part, prefix in [("ema", "G.param."), ("discriminator", "D.param.")]
    }
    states["ema"] |= {
        "x_embedder.proj.weight": noise(64, 4, 2, 2),
        "x_embedder.proj.bias": noise(64),
        "w_avg": noise(10, 64),
    }
    for state in states.values():
        # Off by a unit in the last place here and there, so that ours in their place would be seen.
        state["pos_embed"] = torch.nextafter(sincos(64, 4), torch.tensor(2.0))
        state["feat_rope.freqs_cos"] = torch.nextafter(state["feat_rope.freqs_cos"], torch.tensor(2.0))
    fixed = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")
    states["generator"] = {k: t.clone() if k in fixed else t + 0.1 * noise(*t.shape) for k, t in states["ema"].items()}
    arguments = argparse.Namespace(model="GAT-S/2", resolution=64, num_classes=10, qk_norm=True, data_dir="/their/data")
    optimizer = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    bookkeeping = {"args": arguments, "steps": 1250, "wallclock_time": 1.5, "wandb_run_id": "x"}
    return {**states, "optG": optimizer, "optD": optimizer, **bookkeeping}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_same_states(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Keys, shapes, types and bytes of all three state dicts."""
    for part in PARTS:
        assert a[part].keys() == b[part].keys()
        for name, tensor in a[part].items():
            other = b[part][name]
            assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype), name
            assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), name


def read(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def test_imported_networks_compute_the_reference_values(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    import_official(saved(tmp_path / "a.pt", released(reference)), tmp_path / "out", silent)
    found = from_pretrained(tmp_path / "out", discriminator=True)
    spec = found.generator.spec
    assert (spec.width, spec.depth, spec.heads, spec.side, spec.channels) == (64, 4, 4, 8, 4)
    assert (spec.patch, spec.classes, spec.levels, spec.z_dim) == (2, 10, 4, 64)
    assert found.discriminator is not None
    assert (found.discriminator.spec.class_width, found.discriminator.spec.teacher_width) == (32, 48)
    assert found.discriminator.spec.projector_width == 96
    with torch.no_grad():
        levels, w = found.generator(reference["z"], reference["y"])
        inputs = reference["D.input_levels"].transpose(0, 1).flatten(1, 2)
        logits, _ = found.discriminator(inputs, reference["y"])
    assert (levels - reference["G.levels"]).abs().max() <= 1e-5 and (w - reference["G.w"]).abs().max() <= 1e-5
    assert (logits - reference["D.logits"][:, 0]).abs().max() <= 1e-5
    assert found.about.training["step"] == 1250 and found.about.tokenizer is None
    assert "/their/data" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_and_out_again_changes_no_bit(
    tmp_path: Path, reference: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    theirs = released(reference)
    theirs["ema"] = {name: tensor.to(dtype) for name, tensor in theirs["ema"].items()}
    said: list[str] = []
    import_official(saved(tmp_path / "a.pt", theirs), tmp_path / "out", silent)
    export_official(tmp_path / "out", tmp_path / "b.pt", {}, said.append)
    ours = read(tmp_path / "b.pt")
    assert_same_states(theirs, ours)
    assert sorted(ours) == ["args", "discriminator", "ema", "generator", "steps"] and ours["steps"] == 1250
    assert vars(ours["args"]) == {"model": "GAT-S/2", "resolution": 64, "num_classes": 10, "qk_norm": True}
    assert said == []
    with pytest.raises(UserError, match=r"b\.pt already exists"):
        export_official(tmp_path / "out", tmp_path / "b.pt", {}, said.append)


def test_without_alignment_and_bookkeeping(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    theirs = {part: state for part, state in released(reference).items() if part in PARTS}
    theirs["discriminator"] = {k: t for k, t in theirs["discriminator"].items() if not k.startswith("proj.")}
    import_official(saved(tmp_path / "a.pt", theirs), tmp_path / "out", silent)
    export_official(tmp_path / "out", tmp_path / "b.pt", {}, silent)
    ours = read(tmp_path / "b.pt")
    assert_same_states(theirs, ours)
    assert sorted(ours) == sorted(PARTS)


def learned(theirs: dict[str, Any]) -> None:
    """Position tables as the released training leaves them: each network's own, and the EMA's behind G's."""
    random = torch.Generator().manual_seed(1)
    move = {part: 0.04 * torch.randn(theirs[part]["pos_embed"].shape, generator=random) for part in PARTS}
    move["ema"] = 0.01 * move["generator"]
    for part in PARTS:
        theirs[part]["pos_embed"] += move[part]


def test_learned_positions_are_weights_and_come_back(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    theirs = released(reference)
    learned(theirs)
    import_official(saved(tmp_path / "a.pt", theirs), tmp_path / "out", silent)
    found = from_pretrained(tmp_path / "out", discriminator=True)
    assert found.discriminator is not None
    assert found.generator.spec.positions == found.discriminator.spec.positions == "trained"
    assert torch.equal(found.generator.position, theirs["ema"]["pos_embed"])
    assert torch.equal(found.discriminator.position, theirs["discriminator"]["pos_embed"])
    with torch.no_grad():
        levels, _ = found.generator(reference["z"], reference["y"])
    assert 1e-4 < (levels - reference["G.levels"]).abs().max() < 1  # other tables, other pictures
    export_official(tmp_path / "out", tmp_path / "b.pt", {}, silent)
    assert_same_states(theirs, read(tmp_path / "b.pt"))


def test_a_network_whose_table_did_not_move_has_a_fixed_one(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    theirs = released(reference)
    theirs["discriminator"]["pos_embed"] += 1e-3
    import_official(saved(tmp_path / "a.pt", theirs), tmp_path / "out", silent)
    found = from_pretrained(tmp_path / "out", discriminator=True)
    assert found.discriminator is not None
    assert (found.generator.spec.positions, found.discriminator.spec.positions) == ("fixed", "trained")
    export_official(tmp_path / "out", tmp_path / "b.pt", {}, silent)
    assert_same_states(theirs, read(tmp_path / "b.pt"))


def test_a_trial_with_trained_positions_goes_out_and_in(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tiny_trial(tmp_path, model__positions="trained"))
    export_official(checkpoint, tmp_path / "a.pt", {}, silent)
    theirs, state = read(tmp_path / "a.pt"), open_checkpoint(checkpoint)
    for part in PARTS:
        assert torch.equal(theirs[part]["pos_embed"], state.part(part)["position"])
    import_official(tmp_path / "a.pt", tmp_path / "back", silent)
    found = from_pretrained(tmp_path / "back").generator.state_dict()
    assert [name for name, tensor in state.part("ema").items() if not torch.equal(tensor, found[name])] == []


@pytest.mark.parametrize(
    ("kept", "lines"),
    [
        (("ema",), ["no weights of the generator beside the EMA", "no discriminator"]),
        (("generator",), ["has no EMA", "no discriminator"]),
        (("ema", "discriminator"), ["no weights of the generator beside the EMA"]),
        (("generator", "discriminator"), ["has no EMA"]),
        ((), ["has no EMA", "no discriminator"]),
    ],
    ids=["EMA", "generator", "EMA and D", "generator and D", "bare"],
)
def test_what_a_file_lacks_is_said(
    tmp_path: Path, reference: dict[str, torch.Tensor], kept: tuple[str, ...], lines: list[str]
) -> None:
    theirs = released(reference)
    part = kept[0] if kept else "generator"
    content = {name: theirs[name] for name in kept} if kept else theirs["generator"]
    said: list[str] = []
    import_official(saved(tmp_path / "a.pt", content), tmp_path / "out", said.append)
    assert len(said) == len(lines) and all(line in text for line, text in zip(lines, said, strict=True))
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("EMA of the weights" in card) == (part == "ema")
    weights = from_pretrained(tmp_path / "out").generator.state_dict()
    assert torch.equal(weights["style_mean"], theirs[part]["w_avg"])
    export_official(tmp_path / "out", tmp_path / "b.pt", {}, silent)
    back = read(tmp_path / "b.pt")
    whole = {"ema": theirs[part], "generator": theirs[part], "discriminator": theirs["discriminator"]}
    if "discriminator" not in kept:
        assert "discriminator" not in back
        back["discriminator"] = whole["discriminator"]
    assert_same_states(whole, back)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path, reference: dict[str, torch.Tensor], prefix: str) -> None:
    theirs = released(reference)
    wrapped = theirs | {part: {f"{prefix}{name}": t for name, t in theirs[part].items()} for part in PARTS}
    wrapped["ema"] = {name.replace("blocks.1.", "blocks.1._orig_mod."): t for name, t in theirs["ema"].items()}
    import_official(saved(tmp_path / "a.pt", wrapped), tmp_path / "out", silent)
    export_official(tmp_path / "out", tmp_path / "b.pt", {}, silent)
    assert_same_states(theirs, read(tmp_path / "b.pt"))


def test_a_trial_goes_out_with_what_they_need(tmp_path: Path) -> None:
    """All that their load_state_dict asks for; imported again, it is the trial's networks."""
    checkpoint = checkpoint_of(tiny_trial(tmp_path))
    said: list[str] = []
    export_official(checkpoint, tmp_path / "a.pt", {}, said.append)
    theirs = read(tmp_path / "a.pt")
    assert sorted(theirs) == ["discriminator", "ema", "generator", "steps"] and theirs["steps"] == 4
    assert len(said) == 1 and "--num-classes" in said[0]
    state = open_checkpoint(checkpoint)
    for part in ("generator", "ema"):
        for name, tensor in state.part(part).items():
            assert torch.equal(theirs[part][official_name(name, OFFICIAL_NAMES_G)], tensor)
        assert torch.allclose(theirs[part]["pos_embed"], sincos(8, 4), atol=1e-6)
        weight = theirs[part]["x_embedder.proj.weight"]
        bound = (6 / (8 + 4)) ** 0.5  # Xavier-uniform of 4 values to 8
        assert weight.shape == (8, 1, 2, 2) and 0.8 * bound < weight.abs().max() <= bound
    assert not torch.equal(theirs["generator"]["w_avg"], theirs["ema"]["w_avg"])
    row, pair = torch.tensor(3.0), torch.tensor(1.0)  # of token 13 = (3, 1): half of the head turns by the row
    assert theirs["discriminator"]["feat_rope.freqs_cos"][13, 0] == pytest.approx(row.cos().item())
    assert theirs["discriminator"]["feat_rope.freqs_sin"][13, 7] == pytest.approx((pair / 100).sin().item())
    import_official(tmp_path / "a.pt", tmp_path / "back", silent, tokenizer="pixels")
    found = from_pretrained(tmp_path / "back").generator.state_dict()
    assert [name for name, tensor in state.part("ema").items() if not torch.equal(tensor, found[name])] == []


def test_a_folder_of_a_trial_has_the_running_average_only_and_says_so(tmp_path: Path) -> None:
    generator, discriminator = networks()
    save_pretrained(tmp_path / "out", generator, discriminator=discriminator)
    said: list[str] = []
    export_official(tmp_path / "out", tmp_path / "a.pt", {}, said.append)
    theirs = read(tmp_path / "a.pt")
    assert "one set of weights" in said[0]
    assert all(torch.equal(theirs["generator"][name], tensor) for name, tensor in theirs["ema"].items())


# ---------------------------------------------------------------- files that are not such checkpoints


class Malice:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["file", "args", "state"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, reference: dict[str, torch.Tensor], where: str) -> None:
    theirs, malice = released(reference), Malice(tmp_path / "marker")
    if where == "file":
        (tmp_path / "a.pt").write_bytes(pickle.dumps(malice))
    else:
        theirs[where if where == "args" else "ema"] = (
            argparse.Namespace(model=malice) if where == "args" else {"w_avg": malice}
        )
        saved(tmp_path / "a.pt", theirs)
    with pytest.raises(UserError, match="is not a checkpoint of tensors") as error:
        import_official(tmp_path / "a.pt", tmp_path / "out", silent)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]
    if where == "file":  # it would have
        pickle.loads((tmp_path / "a.pt").read_bytes())
        assert (tmp_path / "marker").exists()


def without(part: str, key: str) -> Callable[[dict[str, Any]], None]:
    return lambda theirs: theirs[part].pop(key)


def reshaped(part: str, key: str, *shape: int) -> Callable[[dict[str, Any]], None]:
    return lambda theirs: theirs[part].update({key: torch.zeros(shape)})


def turned(theirs: dict[str, Any]) -> None:
    theirs["discriminator"]["feat_rope.freqs_sin"] += 1e-3


def doubled(theirs: dict[str, Any]) -> None:
    theirs["ema"]["module.w_avg"] = theirs["ema"]["w_avg"] + 1


def poisoned(part: str, key: str, value: float) -> Callable[[dict[str, Any]], None]:
    return lambda theirs: theirs[part][key].view(-1)[-1:].fill_(value)


def gapped(theirs: dict[str, Any]) -> None:
    theirs["ema"] = {name.replace("blocks.3.", "blocks.8."): tensor for name, tensor in theirs["ema"].items()}


BAD: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda theirs: [theirs.pop("ema"), theirs.pop("generator")], "has neither 'ema' nor 'generator'"),
    (lambda theirs: theirs.update(generator=[1]), "'generator' is not a state dict"),
    (lambda theirs: theirs.update(discriminator=None), "'discriminator' is not a state dict"),
    (without("ema", "w_avg"), "ema lacks 'w_avg'"),
    (without("ema", "x_embedder.proj.weight"), "ema lacks 'x_embedder.proj.weight', which gives shapes"),
    (without("generator", "blocks.1.mlp.w3.bias"), "generator lacks 'blocks.1.mlp.w3.bias'"),
    (without("ema", "blocks.0.attn.q_norm.weight"), "ema lacks 'blocks.0.attn.q_norm.weight'"),
    (without("discriminator", "feat_rope.freqs_sin"), "discriminator lacks 'feat_rope.freqs_sin'"),
    (reshaped("ema", "w_avg", 11, 64), "'w_avg' is float32 [11, 64], but the other shapes need [10, 64]"),
    (reshaped("generator", "blocks.0.mlp.w3.weight", 64, 8), "generator: 'blocks.0.mlp.w3.weight' is float32 [64, 8]"),
    (reshaped("discriminator", "x_embedder.proj.weight", 64, 4, 2, 2), "discriminator has inputs 4"),
    (reshaped("discriminator", "y_embedder.embedding_table.weight", 7, 32), "discriminator has classes 7"),
    (reshaped("ema", "pos_embed", 1, 15, 64), "15 positions"),
    (reshaped("ema", "pos_embed", 15, 64), "it needs 3 dimensions"),
    (reshaped("ema", "blocks.0.attn.q_norm.weight", 0), "it needs 1 dimensions"),
    (reshaped("ema", "extra", 3), "has 'extra', which these networks do not have"),
    (turned, "discriminator.feat_rope.freqs_sin differs by 0.001 from the fixed table"),
    (doubled, "ema has 'w_avg' twice"),
    (poisoned("ema", "blocks.2.mlp.w3.weight", float("nan")), "ema: 'blocks.2.mlp.w3.weight' has values that are not"),
    (poisoned("generator", "w_avg", float("inf")), "generator: 'w_avg' has values that are not finite"),
    (poisoned("discriminator", "pos_embed", float("nan")), "discriminator: 'pos_embed' has values that are not"),
    (gapped, "ema lacks 'blocks.3."),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_what_does_not_fit_costs_one_line(
    tmp_path: Path, reference: dict[str, torch.Tensor], change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    theirs = released(reference)
    change(theirs)
    with pytest.raises(UserError) as error:
        import_official(saved(tmp_path / "a.pt", theirs), tmp_path / "out", silent)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_commands_and_their_mistakes(
    tmp_path: Path,
    reference: dict[str, torch.Tensor],
    gat: Gat,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a.pt", released(reference))
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    mistakes = [
        (["import-official", "no.pt", "out"], "no.pt: no such file"),
        (["import-official", "text.pt", "out"], "is not a checkpoint of tensors"),
        (["import-official", "empty.pt", "out"], "is not a checkpoint of tensors"),
        (["import-official", "a.pt", "out", "--tokenizer", "dct16"], "has 16 channels, but a.pt makes 4"),
        (["export-official", "out", "b.pt"], "has no config.json"),
    ]
    for args, words in mistakes:
        code, out, err = gat(*args)
        assert code == 2 and words in err and len(err.splitlines()) == 1 and out == "", err
    assert not (tmp_path / "out").exists()
    code, out, _ = gat("import-official", "a.pt", "out", "--tokenizer", "dct4")
    assert code == 0 and "width 64, depth 4, heads 4" in out and "optimizers are left out" in out
    assert gat("export-official", "out", "b.pt")[0] == 0
    assert_same_states(read(tmp_path / "a.pt"), read(tmp_path / "b.pt"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data__classes": 0}, "no unconditional networks"),
        ({"mng__schedule": "none"}, "with 4 levels, but these have 1"),
    ],
)
def test_networks_that_they_cannot_build_do_not_go_out(tmp_path: Path, overrides: dict[str, Any], words: str) -> None:
    checkpoint = checkpoint_of(tiny_trial(tmp_path, **overrides))
    with pytest.raises(UserError, match=words):
        export_official(checkpoint, tmp_path / "a.pt", {}, silent)
    assert not (tmp_path / "a.pt").exists()
