"""Sheets of pictures as PNG."""

import io

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST_SHOWN = 64  # pixels; smaller pictures are enlarged on a sheet
LINE = 2  # pixels between pictures
FONT = 14  # pixels


def sheet(pictures: Tensor, columns: int) -> bytes:
    """PNG of pictures, uint8 [n, 3, h, w], row by row, with white lines between them and white for missing ones."""
    return _png(_grid(pictures, columns))


def labelled_sheet(pictures: Tensor, columns: int, title: str, heads: list[str]) -> bytes:
    """PNG as of `sheet`, below a title and a line above each column."""
    grid, font = _grid(pictures, columns), ImageFont.load_default(FONT)
    width = max(grid.width, int(font.getlength(title)) + 2 * LINE)
    page = Image.new("RGB", (width, grid.height + 3 * FONT + LINE), "white")
    page.paste(grid, (0, 3 * FONT + LINE))
    draw, step = ImageDraw.Draw(page), (grid.width - LINE) / columns
    draw.text((LINE, 0), title, "black", font)
    for i, head in enumerate(heads):
        draw.text((LINE + (i + 0.5) * step, int(1.6 * FONT)), head, "black", font, anchor="ma")
    return _png(page)


def _grid(pictures: Tensor, columns: int) -> Image.Image:
    factor = max(1, SMALLEST_SHOWN // pictures.shape[2])
    pictures = pictures.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    grid = torch.full((rows * columns, 3, pictures.shape[2] + LINE, pictures.shape[3] + LINE), 255, dtype=torch.uint8)
    grid[: len(pictures), :, LINE:, LINE:] = pictures
    grid = grid.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # y, x, rgb
    return Image.fromarray(F.pad(grid, (0, 0, 0, LINE, 0, LINE), value=255).contiguous().numpy())


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
