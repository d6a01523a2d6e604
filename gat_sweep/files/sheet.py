"""Sheets of pictures as PNG."""

import io
import textwrap
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST_SHOWN = 64  # pixels; smaller pictures are enlarged on a sheet
LINE = 2  # pixels between pictures
FONT = 14  # pixels
CAPTIONED = 96  # pixels; smaller pictures with captions are enlarged
LINES, SMALL = 3, 11  # of a caption under a picture: most lines, and pixels of a line


def sheet(pictures: Tensor, columns: int, captions: Sequence[str] = ()) -> bytes:
    """PNG of pictures, uint8 [n, 3, h, w], row by row, with white lines between them and white for missing ones.

    captions: one under each picture, cut after LINES lines.
    """
    if not captions:
        return _png(_grid(pictures, columns))
    factor = max(1, -(-CAPTIONED // pictures.shape[3]))
    pictures = pictures.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width = pictures.shape[2:]
    columns = min(columns, len(pictures))
    rows, font = -(-len(pictures) // columns), ImageFont.load_default(SMALL)
    step_y, step_x = height + LINES * SMALL + 4 * LINE, width + 4 * LINE
    page = Image.new("RGB", (columns * step_x, rows * step_y), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        y, x = i // columns * step_y + LINE, i % columns * step_x + 2 * LINE
        page.paste(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), (x, y))
        letters = int(width / (0.55 * SMALL))
        lines = textwrap.wrap(caption, letters, max_lines=LINES, placeholder=" ...")
        draw.multiline_text((x, y + height + LINE), "\n".join(lines), "black", font, spacing=0)
    return _png(page)


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
