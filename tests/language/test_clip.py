"""CLIP's text tower: parity with the library called plainly, padding, cutting, FLOPs, and what a mistake costs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.clips import POSITIONS, clip_tokenizer, save_clip
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from transformers.utils import logging

from gat_sweep.errors import UserError
from gat_sweep.language.clip import ClipText
from gat_sweep.language.encoder import PADDING
from gat_sweep.language.flops import clip_text_flops
from gat_sweep.language.load import load_text_encoder

CAPTIONS = ["a cat", "a dog, a cat", "", "a cat and a dog, and more"]
NAME = "openai/some-clip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path, folder: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "clip")


def encoder(folder: Path, tokens: int | None = None) -> ClipText:
    return ClipText(NAME, tokens, str(folder))


def test_states_are_the_librarys(folder: Path) -> None:
    model, tokenizer = CLIPTextModelWithProjection.from_pretrained(folder), clip_tokenizer()
    ours = load_text_encoder(NAME, folder=str(folder))
    ids, cut = ours.ids(CAPTIONS[:3])
    found = ours.encode(torch.from_numpy(ids))
    assert ids.dtype == np.int32 and ids.shape == (3, POSITIONS) and not cut.any()
    for i, caption in enumerate(CAPTIONS[:3]):  # one at a time, without padding
        read = tokenizer(caption, return_tensors="pt")
        length = read.input_ids.shape[1]
        with torch.no_grad():
            expected = model(**read)
        assert ids[i, :length].tolist() == read.input_ids[0].tolist() and (ids[i, length:] == PADDING).all()
        assert found.weight[i].tolist() == [1] * length + [0] * (POSITIONS - length)
        assert torch.allclose(found.words[i, :length], expected.last_hidden_state[0], atol=1e-5)
        assert torch.allclose(found.sentence[i], expected.text_embeds[0], atol=1e-5)
        assert not found.words[i, length:].any()
    assert (found.sentence[0] - found.sentence[1]).abs().max() > 0.01
    assert found.words.dtype == torch.float32 and not found.sentence.requires_grad
    assert ours.identity.name == NAME and (ours.identity.tokens, ours.identity.width) == (POSITIONS, 32)


def test_padding_changes_nothing(folder: Path) -> None:
    ours = encoder(folder)
    ids = torch.from_numpy(ours.ids(CAPTIONS[:1])[0])
    long, short = ours.encode(ids), ours.encode(ids[:, :4])  # start, a, cat, end
    assert short.weight.all()
    assert torch.allclose(long.sentence, short.sentence, atol=1e-6)
    assert torch.allclose(long.words[:, :4], short.words, atol=1e-6)


def test_a_caption_that_is_cut_ends_in_its_end(folder: Path) -> None:
    ours, tokenizer = encoder(folder, tokens=5), clip_tokenizer()
    ids, cut = ours.ids(CAPTIONS)
    assert cut.tolist() == [False, True, False, True] and ids.shape == (4, 5)
    expected = tokenizer(CAPTIONS[1]).input_ids
    assert ids[1].tolist() == [*expected[:4], tokenizer.eos_token_id]
    assert ids[2].tolist() == [*tokenizer("").input_ids, *[PADDING] * 3]
    exact = encoder(folder, tokens=4).ids(CAPTIONS[:1])
    assert exact[0][0].tolist() == tokenizer(CAPTIONS[0]).input_ids and not exact[1].any()
    for wrong in (1, POSITIONS + 1):
        with pytest.raises(UserError, match=rf"reads 2 to {POSITIONS} tokens of a caption, not {wrong}"):
            encoder(folder, tokens=wrong)


def test_openais_old_number_of_the_end_token(tmp_path: Path, folder: Path) -> None:
    """With eos_token_id 2 transformers takes the highest id; the states are the same, the digest is of the config."""
    save_clip(tmp_path, end=2)
    old, new = encoder(tmp_path), encoder(folder)
    ids = torch.from_numpy(old.ids(CAPTIONS[:3])[0])
    assert torch.allclose(old.encode(ids).sentence, new.encode(ids).sentence, atol=1e-6)
    assert old.identity.tokenizer == new.identity.tokenizer
    save_clip(tmp_path, end=7)
    with pytest.raises(UserError, match=r"ends texts with token \d+, and its weights expect 7; copy the tokenizer"):
        encoder(tmp_path)


@pytest.mark.parametrize("tokens", [3, POSITIONS])
def test_flops_equal_the_counter(folder: Path, tokens: int) -> None:
    ours = encoder(folder, tokens)
    ids = torch.from_numpy(ours.ids(CAPTIONS)[0])
    # The counter does not know the fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ours.encode(ids)
    assert counter.get_total_flops() == len(CAPTIONS) * ours.flops > 0


def test_flops_of_openais_large_one() -> None:
    config = CLIPTextConfig(
        hidden_size=768, num_hidden_layers=12, intermediate_size=3072, num_attention_heads=12, projection_dim=768
    )
    with torch.device("meta"):
        model, ids = CLIPTextModelWithProjection(config), torch.zeros(1, 77, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids)
    assert counter.get_total_flops() == clip_text_flops(768, 12, 3072, 77)


def test_the_identity_is_of_weights_arithmetic_and_tokenizer(copy: Path, folder: Path) -> None:
    first = encoder(folder).identity
    config = json.loads((copy / "config.json").read_text())
    config["transformers_version"] = "5.0"
    (copy / "config.json").write_text(json.dumps(config))
    assert encoder(copy).identity == first
    config["text_config"]["hidden_act"] = "gelu"
    (copy / "config.json").write_text(json.dumps(config))
    assert encoder(copy).identity.digest != first.digest
    shutil.copy(folder / "config.json", copy)
    weights = load_file(copy / "model.safetensors")
    weights["text_model.final_layer_norm.bias"][0] += 1e-6
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert encoder(copy).identity.digest != first.digest
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    tokenizer = (copy / "tokenizer.json").read_text()
    changed = tokenizer.replace('"cat</w>"', '"bat</w>"').replace('"c",', '"b",')
    assert changed != tokenizer
    (copy / "tokenizer.json").write_text(changed)
    other = encoder(copy).identity
    assert other.tokenizer != first.tokenizer and other.digest == first.digest


def test_loading_is_silent_and_leaves_no_settings(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenAI's files hold positions that the library no longer reads; half precision is computed in single."""
    weights = {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    ours = encoder(copy)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert all(tensor.dtype == torch.float32 for tensor in ours.model.parameters())
    out = capsys.readouterr()
    assert out.out == "" and out.err == ""


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        encoder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_that_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    good, name = load_file(file), "text_model.final_layer_norm.bias"

    def planted(**changes: Any) -> str:
        tensors = {key: value for key, value in {**good, **changes}.items() if value is not None}
        save_file(tensors, file, {"format": "pt"})
        return refusal(copy)

    assert f"missing or unexpected weights (first: {name})" in planted(**{name: None})
    assert f"missing or unexpected weights (first: {name})" in planted(**{name: torch.zeros(3)})
    assert "(first: text_model.more)" in planted(**{"text_model.more": torch.zeros(3)})
    assert "or give one with its projections" in planted(**{"text_projection.weight": None})
    assert f"'{name}' has values that are not finite" in planted(**{name: good[name] * torch.nan})
    file.write_bytes(b"nothing")
    assert "is damaged (SafetensorError" in refusal(copy)
    file.rename(copy / "pytorch_model.bin")  # would be unpickled
    assert "model.safetensors" in refusal(copy)


def test_folders_that_are_not_a_clip(copy: Path, folder: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())

    def configured(values: object) -> str:
        (copy / "config.json").write_text(json.dumps(values))
        return refusal(copy)

    assert "is of type AutoencoderKL, not clip" in configured({"_class_name": "AutoencoderKL"})
    assert "is of type bert, not clip" in configured({"model_type": "bert"})
    assert "has no config.json with values" in configured([])
    text = config["text_config"]
    assert "is damaged (StrictDataclass" in configured({**config, "text_config": {**text, "hidden_size": "32"}})
    assert "is damaged (KeyError" in configured({**config, "text_config": {**text, "hidden_act": "none"}})
    (copy / "config.json").write_text("{")
    assert "cannot load the CLIP" in refusal(copy)
    (copy / "config.json").unlink()
    assert "has no config.json with values" in refusal(copy)
    (copy / "model_index.json").write_text("{}")
    assert f"is a whole pipeline; name its CLIP's folder, {copy / 'text_encoder'}" in refusal(copy)
    assert "is not a folder; give a hub id" in refusal(tmp_path / "absent")
    save_clip(tmp_path / "narrow", projection=16)
    assert "projects sentences to width 16, but its words have width 32" in refusal(tmp_path / "narrow")


def test_tokenizers_that_are_refused(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    model = content["model"]
    absent = {**content, "model": {**model, "merges": [["absent", "word"]]}}
    for damaged in ("{", "{}", "", json.dumps(content)[:-40], json.dumps(absent)):
        (copy / "tokenizer.json").write_text(damaged)
        assert "is damaged (" in refusal(copy), damaged
    (copy / "tokenizer.json").unlink()
    assert "has no tokenizer; copy tokenizer.json, or vocab.json and merges.txt" in refusal(copy)
    (copy / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "#version: 0.2\na t</w>\nc at</w>\no g</w>\nd og</w>\n"
    (copy / "merges.txt").write_text(merges)
    assert encoder(copy).ids(CAPTIONS)[0].tolist() == encoder_ids(copy)
    for cut in (b"#version: 0.2\na t</w>\nc\n", b"#version: 0.2\nabsent word\n", b"\xff\xfe"):
        (copy / "merges.txt").write_bytes(cut)
        assert "is damaged (" in refusal(copy), cut
    (copy / "merges.txt").write_text(merges)
    (copy / "vocab.json").write_text(json.dumps({**model["vocab"], "one more": len(model["vocab"])}))
    assert "tokens, and its weights have" in refusal(copy)
    (copy / "vocab.json").write_text("{")
    assert "is damaged (" in refusal(copy)


def encoder_ids(folder: Path) -> list[list[int]]:
    """Ids of CAPTIONS with the tokenizer that was never written."""
    found = [clip_tokenizer()(caption).input_ids for caption in CAPTIONS]
    return [
        row[: POSITIONS - 1] + row[-1:] if len(row) > POSITIONS else row + [PADDING] * (POSITIONS - len(row))
        for row in found
    ]


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^cannot load the CLIP 'nobody/no-such-clip': .*give its folder$"):
        load_text_encoder("nobody/no-such-clip")
