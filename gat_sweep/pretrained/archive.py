"""Pictures in an npz, as evaluators of ADM read them."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


class Archive:
    """An npz that grows batch by batch (50,000 pictures of 256x256 are 10 GB); it appears complete or not at all."""

    def __init__(self, path: Path, count: int):
        self.path, self.count = path, count
        self.temporary = path.with_name(f".{path.name}.tmp")
        self.zip: zipfile.ZipFile | None = None
        self.array: Any = None

    def add(self, pictures: Tensor) -> None:
        """Appends pictures, uint8 [n, 3, h, w]."""
        values = np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
        if self.zip is None:
            self.zip = zipfile.ZipFile(self.temporary, "w")
            self.array = self.zip.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True)
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *values.shape[1:])}
            np.lib.format.write_array_header_1_0(self.array, header)
        self.array.write(values)

    def close(self, labels: Mapping[str, np.ndarray]) -> None:
        """Writes classes or captions [N] by name, and puts the complete file in place."""
        assert self.zip is not None
        self.array.close()
        for name, values in labels.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, values, allow_pickle=False)
            self.zip.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
        self.zip.close()
        with open(self.temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)

    def discard(self) -> None:
        """Removes an incomplete file; does nothing after close()."""
        self.temporary.unlink(missing_ok=True)
