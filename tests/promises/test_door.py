"""What others wrote is read as plain numbers: no pickle in a file of weights, arrays, shards or tables is ever loaded.

Every bad file here makes a folder when it is unpickled; the first test shows that it would.
"""

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.mistakes import refuses
from helpers.pictures import PHOTO, encoded, encoded_pixels, photo_config, write_edm2
from helpers.trials import save_checkpoint, tiny_config
from safetensors.torch import save

from analysis.reading import load_table
from gat_sweep.data.shards import open_shards
from gat_sweep.data.tokenizer import load_tokenizer
from gat_sweep.encode.latents import plan_latents
from gat_sweep.encode.sources import plan_images, read_unit
from gat_sweep.metrics.picture_sets import open_pictures
from gat_sweep.metrics.reference import check_reference, load_reference, reference_dataset
from gat_sweep.run.checkpoint import open_checkpoint
from gat_sweep.run.saved import Damaged
from gat_sweep.vision import extractors
from gat_sweep.vision.extractors import check_extractor, inception_weights, vision_transformer
from gat_sweep.vision.perceptual import Lpips
from gat_sweep.vision.teacher import load_teacher

pytestmark = pytest.mark.reliability
ROOT = Path(__file__).parents[2]
Figures = Callable[..., None]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return Payload(tmp_path / "executed")


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return file.getvalue()


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def bad_weights(payload: Payload) -> dict[str, bytes]:
    """Files that torch's and other loaders of weights meet, each with the payload in it; and two of nothing."""
    plain = pickle.dumps(payload, protocol=2)

    def tar(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as target:
            for name in ("storages", "tensors", "pickle"):
                info = tarfile.TarInfo(name)
                info.size = len(plain)
                target.addfile(info, io.BytesIO(plain))

    return {
        "torch": written(lambda file: torch.save({"weight": payload, "bias": torch.zeros(2)}, file)),
        "before 1.6": written(lambda f: torch.save({"w": payload}, f, _use_new_zipfile_serialization=False)),
        "pickle": plain,
        "pickle 0": pickle.dumps({"state_dict": payload}, protocol=0),
        "pickle 5": pickle.dumps(payload, protocol=5),
        "TorchScript": archive({f"a/{name}.pkl": plain for name in ("data", "constants")} | {"a/version": b"3\n"}),
        "tar": written(tar),
        "garbage": np.random.default_rng(0).bytes(200),
        "empty": b"",
    }


def bad_arrays(payload: Payload) -> dict[str, bytes]:
    """npz files whose mu, sigma and arr_0 are pickles."""
    names, objects = ("mu", "sigma", "arr_0"), np.array([payload], dtype=object)
    plain = pickle.dumps(payload)
    return {
        "objects": written(lambda file: np.savez(file, **dict.fromkeys(names, objects))),
        "compressed objects": written(lambda file: np.savez_compressed(file, **dict.fromkeys(names, objects))),
        "pickles as members": archive({f"{name}.npy": plain for name in names}),
        "one array": written(lambda file: np.save(file, objects, allow_pickle=True)),
        "pickle": plain,
        "empty": b"",
    }


def test_the_bad_files_would_run_what_they_hold(tmp_path: Path, payload: Payload) -> None:
    bad = bad_weights(payload)
    for name in ("torch", "before 1.6"):
        torch.load(io.BytesIO(bad[name]), weights_only=False)
        payload.marker.rmdir()
    for name in ("pickle", "pickle 0", "pickle 5"):
        pickle.loads(bad[name])
        payload.marker.rmdir()
    np.load(io.BytesIO(bad_arrays(payload)["one array"]), allow_pickle=True)
    payload.marker.rmdir()


@pytest.mark.slow
def test_no_pickle_is_loaded_from_a_file_of_weights(
    tmp_path: Path, payload: Payload, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pickle is loaded from files of weights: extractor, teacher, LPIPS, hub download, VAE."""
    vae = tmp_path / "vae"
    vae.mkdir()
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [32], "latent_channels": 4}
    (vae / "config.json").write_text(json.dumps(config))
    loaders: dict[str, tuple[str, Callable[[Path], object]]] = {
        "eval.weights, Inception": ("a.pth", lambda path: inception_weights(str(path))),
        "eval.weights, transformer": ("b.pth", lambda p: vision_transformer("vit_tiny_patch16_224", str(p), 224, "x")),
        "safetensors": ("c.safetensors", lambda path: inception_weights(str(path))),
        "teacher.checkpoint": ("d.safetensors", lambda path: load_teacher("vit_tiny_patch16_224", str(path), 14)),
        "--lpips-backbone": ("e.pth", lambda path: Lpips(path, torch.device("cpu"))),
        "a VAE's pickle": ("vae/diffusion_pytorch_model.bin", lambda path: load_tokenizer(str(path.parent))),
        "a VAE's safetensors": (
            "vae/diffusion_pytorch_model.safetensors",
            lambda path: load_tokenizer(str(path.parent)),
        ),
    }
    tried = refused = 0
    for name, load in loaders.values():
        for content in bad_weights(payload).values():
            (tmp_path / name).write_bytes(content)
            tried += 1
            refused += refuses(lambda load=load, path=tmp_path / name: load(path))
            assert not payload.marker.exists()

    # What a hub serves in place of the weights; and what lies in its cache.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    content = bad_weights(payload)["torch"]
    for digest in (hashlib.sha256(content).hexdigest()[:8], "00000000"):
        served = tmp_path / f"weights-{digest}.pth"
        served.write_bytes(content)
        monkeypatch.setattr(extractors, "URL_INCEPTION_V3", served.as_uri())
        tried += 1
        refused += refuses(lambda: check_extractor(tiny_config(eval__extractor="inception_v3", eval__resize=299).eval))
    assert (tmp_path / "hub/hub/checkpoints").is_dir() and not payload.marker.exists()
    assert refused == tried
    figures(bad_files_tried=tried, detected=refused, executed=0)


def test_no_pickle_is_loaded_from_arrays(tmp_path: Path, payload: Payload, figures: Figures) -> None:
    """No pickle is loaded from NumPy's files: reference statistics, pictures to measure, latents to import."""
    config = photo_config(tmp_path / "nowhere", eval__reference=str(tmp_path / "a.npz"))
    tried = refused = 0
    for content in bad_arrays(payload).values():
        (tmp_path / "a.npz").write_bytes(content)
        for load in (
            lambda: check_reference(config, reference_dataset(config)),
            lambda: open_pictures(tmp_path / "a.npz"),
        ):
            tried += 1
            refused += refuses(load)

    write_edm2(tmp_path)
    latents, bad = tmp_path / "vae", [bad_arrays(payload)[name] for name in ("one array", "pickle", "empty")]
    plan = plan_latents(str(latents), None, 10)
    for i, content in enumerate(bad, start=1):
        (latents / f"00000/img-mean-std-{i:08d}.npy").write_bytes(content)
    loaded = read_unit(plan.source, plan.units[0], 16)
    assert [reason.split(":")[0] for _, reason in loaded.skipped] == ["broken"] * 3 and len(loaded.names) == 2
    for content in bad:
        (latents / "00000/img-mean-std-00000000.npy").write_bytes(content)
        tried += 1
        refused += refuses(lambda: plan_latents(str(latents), None, 10))
    assert refused == tried and not payload.marker.exists()
    figures(bad_files_tried=tried + len(bad), detected=refused + len(loaded.skipped), executed=0)


def test_no_pickle_is_loaded_from_tables_and_shards(tmp_path: Path, payload: Payload, figures: Figures) -> None:
    """No pickle is loaded from shards, parquet, CIFAR's batches, nor out of pandas' and Arrow's metadata in them."""
    plain = pickle.dumps(payload)
    # Arrow once unpickled types out of this metadata by itself.
    named = {"ARROW:extension:name": b"arrow.py_extension_type", "ARROW:extension:metadata": plain}
    fields = [pa.field("label", pa.int64(), metadata=named), pa.field("image", pa.binary(), metadata=named)]
    schema = pa.schema(fields, metadata={"huggingface": plain, "pandas": plain})
    table = pa.table({"label": [0, 1], "image": [encoded(_photo(), "PNG")] * 2}, schema=schema)
    pq.write_table(table, tmp_path / "t.parquet")
    read = 0
    for name in ("images", "results"):
        if name == "images":
            plan = plan_images(str(tmp_path / "t.parquet"), 10)  # its pictures are sound, its metadata is not read
            read += read_unit(plan.source, plan.units[0], 16).labels == [0, 1]
        else:
            with pytest.raises(ValueError, match="column"):
                load_table(tmp_path / "t.parquet")
            read += 1
    tried = refused = 0
    (tmp_path / "t.parquet").write_bytes(plain)
    for protocol in (2, 5):  # CIFAR's own, and Python's newest
        (tmp_path / f"cifar{protocol}").mkdir()
        for name in ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6))):
            (tmp_path / f"cifar{protocol}" / name).write_bytes(pickle.dumps(payload, protocol))
    for images in ("t.parquet", "cifar2", "cifar5"):
        tried += 1
        refused += refuses(lambda images=images: plan_images(str(tmp_path / images), 10))

    encoded_pixels(tmp_path / "data", 14, 8)
    shard, manifest = tmp_path / "data/shards/00000.arrow", tmp_path / "data/manifest.json"
    sound = json.loads(manifest.read_text())
    batch = pa.ipc.open_file(str(shard)).get_batch(0)
    typed = pa.schema([field.with_metadata(named) for field in batch.schema], metadata={"pandas": plain})
    as_type = written(lambda file: _write_batch(file, batch.cast(typed)))
    for content in (plain, as_type, pickle.dumps([payload] * 100)):
        shard.write_bytes(content)
        changed = {**sound, "shards": [{**sound["shards"][0], "bytes": len(content)}, *sound["shards"][1:]]}
        manifest.write_text(json.dumps(changed))
        tried += 1
        if content is as_type:
            refused += len(open_shards(tmp_path / "data")) == 14  # the columns are right, and the metadata stays bytes
        else:
            refused += refuses(lambda: open_shards(tmp_path / "data"))
    assert refused == tried and read == 2 and not payload.marker.exists()
    figures(bad_files_tried=tried + read, refused_or_read_without=refused + read, executed=0)


def test_no_pickle_is_loaded_from_what_runs_keep(
    tmp_path: Path, payload: Payload, home_with_reference: Path, figures: Figures
) -> None:
    """No pickle is loaded from checkpoints (even with digests that fit) and from the cache of references."""
    network = torch.nn.Linear(2, 2)
    save_checkpoint(tmp_path / "checkpoints", 1, {"generator": network}, {})
    folder = tmp_path / "checkpoints" / "step_00000001"
    tried = refused = 0
    for content in bad_weights(payload).values():
        for digest_fits in (False, True):
            (folder / "generator.safetensors").write_bytes(content)
            if digest_fits:
                values = json.loads((folder / "checkpoint.json").read_text())["values"]
                whole = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                values["files"]["generator"] = whole
                text = json.dumps(values, sort_keys=True)
                seal = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "values": values}
                (folder / "checkpoint.json").write_text(json.dumps(seal))
            tried += 1
            try:
                open_checkpoint(folder).restore({"generator": network})
            except Damaged:
                refused += 1

    config = tiny_config()
    shutil.copytree(home_with_reference / "cache", tmp_path / "cache")
    load_reference(config, reference_dataset(config), tmp_path)
    (cached,) = (tmp_path / "cache").iterdir()
    for content in [*bad_weights(payload).values(), save({"other": torch.zeros(1)})]:
        cached.write_bytes(content)
        tried += 1
        refused += refuses(lambda: load_reference(config, reference_dataset(config), tmp_path))
    assert refused == tried and not payload.marker.exists()
    figures(bad_files_tried=tried, detected=refused, executed=0)


# ---------------------------------------------------------------- what the code may not say

FORBIDDEN = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pd.read_pickle", "pandas.read_pickle", "dill", "joblib"),
    *("cloudpickle.load", "cloudpickle.loads", "shelve.open", "marshal.loads", "eval", "exec", "compile"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("yaml.FullLoader", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load", "os.system"),
}
HAS_TO_SAY = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
MAY_NOT_SAY = {"trust_remote_code", "shell"}


def unsafe_calls(code: str) -> list[str]:
    """Calls that could run what a file holds, by line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "joblib", "cloudpickle", "marshal"):
            found.append(f"{node.lineno}: from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in FORBIDDEN or (name.split(".")[0] in ("dill", "joblib") and name != "joblib.cpu_count"):
            found.append(f"{node.lineno}: {name}")
        if name in HAS_TO_SAY and said.get(HAS_TO_SAY[name][0]) != str(HAS_TO_SAY[name][1]):
            found.append(f"{node.lineno}: {name} without {HAS_TO_SAY[name][0]}={HAS_TO_SAY[name][1]}")
        found += [f"{node.lineno}: {word}=" for word in MAY_NOT_SAY if said.get(word, "False") != "False"]
    return found


def test_the_code_calls_nothing_that_runs_what_a_file_holds(figures: Figures) -> None:
    """No call in gat_sweep, analysis, benchmarks could unpickle or evaluate what a file holds."""
    files = [path for folder in ("gat_sweep", "analysis", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    assert {str(path): unsafe_calls(path.read_text()) for path in files if unsafe_calls(path.read_text())} == {}
    planted = [
        *("pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "yaml.load(s)"),
        *("np.load(f, allow_pickle=True)", "from pickle import loads", "eval(s)", "exec(s)", "joblib.load(f)"),
        *("m.from_pretrained(n, trust_remote_code=True)", "subprocess.run(s, shell=True)"),
    ]
    assert all(unsafe_calls(line) for line in planted)
    figures(files_read=len(files), unsafe_calls=0, planted=len(planted), found=len(planted))


def _photo() -> Any:
    from PIL import Image

    return Image.fromarray(PHOTO[:16, :16])


def _write_batch(file: io.BytesIO, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
