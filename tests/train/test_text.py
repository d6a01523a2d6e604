"""Text-to-image: what a trial is fed, how it trains, resumes and is measured."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.trials import CPU, assert_same_state, rows, tensors, text_config, text_trial

from gat_sweep.compute import iteration_flops
from gat_sweep.data.condition import captioned, condition, trial_encoder
from gat_sweep.data.dataset import check_needs, load_dataset
from gat_sweep.errors import UserError
from gat_sweep.gat.condition import Captions
from gat_sweep.metrics.evaluator import Evaluator, check_evaluation
from gat_sweep.recipe import load_recipe, resolve
from gat_sweep.run.checkpoint import check_text_encoder, step_checkpoint
from gat_sweep.run.trial import Trial
from gat_sweep.train.feed import Feed
from gat_sweep.train.loop import train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def trained(home: Path) -> Trial:
    trial = text_trial(home, eval__extras=["retrieval"])
    assert train(trial, CPU).status == "done"
    return trial


def test_the_emoji_are_pictures_with_their_names() -> None:
    dataset = load_dataset(text_config(data__side=32, data__channels=3, model__patch=8).data)
    assert len(dataset) > 3900 and dataset.classes == 0
    index = {text: i for i, text in enumerate(dataset.caption_texts(range(len(dataset)), np.zeros(len(dataset))))}
    assert len(index) == len(dataset)  # every name once
    pictures = dataset.rows([index[name] for name in ("red circle", "blue circle", "France")], pictures=True).pictures
    assert pictures is not None
    middle = pictures[:, :, 16, 16].tolist()
    red, blue, white = middle
    assert red[0] > red[2] + 80 and blue[2] > blue[0] + 80 and min(white) > 240  # the tricolour's middle
    assert (pictures[:, :, 0, 0] == 255).all()
    spread = pictures.float().flatten(1).std(dim=1)
    assert (spread > 10).all()
    whole = dataset.rows(range(len(dataset)), pictures=True).pictures
    assert whole is not None and (whole.flatten(1).float().std(dim=1) > 1).all()  # none is blank


def test_a_text_trial_leaves_what_others_leave_and_captions(trained: Trial) -> None:
    last = rows(trained)[-1]
    assert (last["status"], last["step"], last["n"]) == ("done", 4, 64)
    assert json.loads(last["flops_per_image"]) == iteration_flops(trained.config)
    assert 0 <= last["retrieval_low"] <= last["retrieval"] <= last["retrieval_high"] <= 1
    assert last["retrieval_chance"] == 10 / 64 and last["clip_score"] is None
    assert rows(trained)[0]["retrieval"] is None  # extras are for the last evaluation
    captions = (trained.folder / "samples" / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert len(captions) == len(set(captions)) == 64


def test_a_cut_text_trial_continues_bit_for_bit(home: Path, trained: Trial) -> None:
    cut = text_trial(home, "cut", eval__extras=["retrieval"])
    outcome = train(cut, CPU, lambda: "enough" if (cut.folder / "checkpoints" / "latest.json").exists() else "")
    assert outcome.status == "stopped" and outcome.step < 4
    assert train(cut, CPU).status == "done"
    assert_same_state(trained, cut, 4, tensors_at_least=100)
    assert [r["value"] for r in rows(trained)] == [r["value"] for r in rows(cut)]


def _worker(rank: int, trial: Trial, file: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    train(trial, CPU)
    dist.destroy_process_group()


def test_two_workers_train_what_one_trains(home: Path, trained: Trial, tmp_path: Path) -> None:
    """The same counters, and weights up to the order of sums; the mean sentence is of the captions of both."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    trial = text_trial(home, "two", eval__extras=["retrieval"], workers__count=2)
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_worker, args=(rank, trial, tmp_path / "store")) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    one, two = tensors(trained, 4), tensors(trial, 4)
    assert two["ema/sentence_mean"].abs().max() > 0
    for name in one:
        if name.startswith(("ema", "generator")):
            assert torch.allclose(one[name], two[name], atol=1e-4), name
    last, alone = rows(trial)[-1], rows(trained)[-1]
    assert last["retrieval_chance"] == alone["retrieval_chance"] and last["images"] == alone["images"]


def test_workers_share_the_captions_of_a_batch() -> None:
    """Captions, images and random numbers of two workers together are those of one, bit for bit."""
    config = text_config()
    dataset = load_dataset(config.data)
    whole = Feed(config, dataset, CPU).batch(3)
    parts = [Feed(config, dataset, CPU, rank, 3).batch(3) for rank in range(3)]
    assert isinstance(whole.y, Captions)
    for column in ("words", "weight", "sentence"):
        assert torch.equal(torch.cat([getattr(part.y, column) for part in parts]), getattr(whole.y, column))
    assert torch.equal(torch.cat([part.real for part in parts]), whole.real)
    again, other = Feed(config, dataset, CPU).batch(3), Feed(text_config(seed=1), dataset, CPU).batch(3)
    assert isinstance(again.y, Captions) and isinstance(other.y, Captions)
    assert torch.equal(again.y.sentence, whole.y.sentence)
    assert not torch.equal(other.y.sentence, whole.y.sentence)


def test_an_image_is_trained_with_its_own_caption() -> None:
    config = text_config()
    encoder = trial_encoder(config)
    assert encoder is not None
    dataset = captioned(load_dataset(config.data), encoder)
    index = [5, 900, 17]
    y = condition(config, dataset.rows(index, captions=np.zeros(3)), encoder)
    texts = dataset.caption_texts(index, np.zeros(3))
    own = encoder.encode(torch.from_numpy(encoder.ids(texts)[0]))
    assert isinstance(y, Captions) and torch.equal(y.words, own.words) and len(set(texts)) == 3


def test_samples_of_an_evaluation_belong_to_their_captions(home: Path, trained: Trial) -> None:
    """Sample i is the picture of caption i; with every caption exchanged it is another picture."""
    config = trained.config
    evaluator = Evaluator(config, load_dataset(config.data), home, CPU)
    assert evaluator.encoder is not None
    torch.manual_seed(0)
    from gat_sweep.gat.generator import Generator

    ema = Generator(config.generator_spec).requires_grad_(False)
    for parameter in ema.parameters():
        parameter += 0.05 * torch.randn(parameter.shape)
    pictures, texts = evaluator.samples(ema, 0, 4), evaluator.captions(0, 4)
    y = evaluator.encoder.encode(torch.from_numpy(evaluator.encoder.ids(texts)[0]))
    z = torch.randn(4, config.model.z_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pictures, evaluator.decoder.decode(ema.sample(z, y)))
    assert not torch.equal(pictures, evaluator.decoder.decode(ema.sample(z, y[torch.tensor([1, 2, 3, 0])])))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"text.width": 300}, "text encoder 'wordllama' has states of width 256; set text.width=256"),
        ({"text.name": "wordlama"}, "unknown text encoder 'wordlama'; did you mean 'wordllama'?"),
        ({"text.folder": "clip"}, "text encoder 'wordllama' comes with its package; leave out the folder clip"),
        ({"text.cached": True}, "text.cached needs stored states, which a built-in data set lacks"),
        ({"eval.extras": ["clip_score"]}, "clip_score and eval.clip belong together"),
        ({"eval.null": "official"}, "eval.null=official is about classes"),
        ({"text": None, "eval.extras": ["retrieval"]}, "retrieval needs captions, and this trial has none"),
        ({"text": None, "eval.extras": [], "eval.guidance": 2.0}, "eval.guidance needs classes or captions"),
        (
            {"text": None, "eval.extras": [], "data.classes": 10},
            "data set 'emoji32-dct16' has data.classes=0, the config says 10",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config = resolve(load_recipe("emoji"), settings)
        dataset = load_dataset(config.data)
        check_needs(config, dataset)
        check_evaluation(config, dataset)
        trial_encoder(config)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkpoint_goes_on_with_its_own_text_encoder_alone(trained: Trial) -> None:
    """CLIPs of one width share a tokenizer, so the weights' digest is in the checkpoint."""
    found, encoder = step_checkpoint(trained.folder / "checkpoints", 4), trial_encoder(trained.config)
    assert encoder is not None and found.facts["text"] == encoder.identity.digest
    check_text_encoder(found, encoder, "it")
    encoder.identity = replace(encoder.identity, digest="0" * 12)
    with pytest.raises(UserError, match=r"it was trained with a text encoder .*; set text.folder to the one it was"):
        check_text_encoder(found, encoder, "it")


def test_a_data_set_without_captions_is_refused() -> None:
    text = {"name": "wordllama", "width": 256, "tokens": 12}
    config = resolve(load_recipe("mnist"), {"text": text})
    with pytest.raises(UserError, match="data set 'mnist' has no captions; set text=null"):
        check_needs(config, load_dataset(config.data))


def test_classes_and_captions_at_once_are_refused() -> None:
    text = {"name": "wordllama", "width": 256, "tokens": 12}
    with pytest.raises(UserError, match=r"has classes \(10\) or captions \(text.width 256\), not both"):
        resolve(load_recipe("mnist"), {"data.classes": 10, "text": text})
