"""Trained networks as an MLflow model: what `mlflow.pyfunc.load_model` calls. It imports no MLflow and loads no pickle.

    model = mlflow.pyfunc.load_model("models:/widths-digits@best")
    model.predict({"classes": [1, 7]})                                 # uint8 [2, h, w, 3]
    model.predict({"classes": [1, 7]}, params={"seed": 3, "psi": 0.7})

Picture i equals picture i of `gat-sweep sample` with the same seed, classes, psi and guidance. Networks with captions
take {"captions": ["red car"]}, those without classes or captions {"count": [8]}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gat_sweep.data.tokenizer import load_decoder
from gat_sweep.errors import UserError
from gat_sweep.gat.condition import Captions
from gat_sweep.language.encoder import TextEncoder
from gat_sweep.language.load import load_same_encoder
from gat_sweep.pretrained.folder import from_pretrained
from gat_sweep.pretrained.sample import Request, batches, checked

# What load_model(..., model_config={...}) may set: where the tokenizer and the text encoder lie now, and cpu, cuda or
# cuda:1.
SETTINGS = {"tokenizer": "", "text_encoder": "", "device": ""}
PARAMS = {"seed": 0, "psi": 1.0, "guidance": 1.0}  # of predict(..., params={...}), with their defaults


class Sampler:
    """A generator with its decoder."""

    def __init__(self, folder: Path, settings: Mapping[str, str]):
        """Raises UserError when the folder is damaged, or the tokenizer or text encoder is missing or another one."""
        found = from_pretrained(folder)
        self.encoder: TextEncoder | None = None
        device = settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(device)
        self.generator = found.generator.to(device).eval().requires_grad_(False)
        where, setting = settings.get("tokenizer") or None, 'model_config={"tokenizer": ...}'
        channels = self.generator.spec.channels
        if found.about.text:
            folder_now, names_it = settings.get("text_encoder") or None, 'model_config={"text_encoder": ...}'
            self.encoder = load_same_encoder(found.about.text, folder_now, names_it, device)
        self.decoder = load_decoder(found.about.tokenizer, where, channels, "these latents", setting, device)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Pictures, uint8 [N, h, w, 3], one for each of data["captions"] or data["classes"], or data["count"] of them.

        Raises UserError for a class that the networks do not have, and for other invalid values.
        """
        spec, given = self.generator.spec, {**PARAMS, **(params or {})}
        captions: Captions | None = None
        if self.encoder:
            texts = tuple(str(text) for text in data["captions"])
            request = Request(count=len(texts), texts=texts, **given)
            captions = self.encoder.encode(torch.from_numpy(self.encoder.ids(texts)[0]).to(self.device))
        elif spec.classes:
            classes = tuple(int(y) for y in data["classes"])
            request = Request(count=len(classes), classes=classes, **given)
        else:
            (count,) = data["count"]
            request = Request(count=int(count), **given)
        if not request.count:
            raise UserError("no classes or captions are given; give one for each picture")
        chosen = checked(request, spec)
        latents = batches(self.generator, request, captions or chosen)
        pictures = torch.cat([self.decoder.decode(part).cpu() for part in latents])
        return pictures.permute(0, 2, 3, 1).numpy()


def _load_pyfunc(path: str, model_config: Mapping[str, str] | None = None) -> Sampler:
    """The name and the arguments that MLflow asks for."""
    return Sampler(Path(path), {**SETTINGS, **(model_config or {})})
