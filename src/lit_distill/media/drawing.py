"""Pictures of a validation, drawn by Pillow alone: a confusion matrix, classes beside a teacher's, captioned clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lit_distill.untrusted.showing import printable

Colour = tuple[int, int, int]

WRITTEN_OUT = 32
"""Classes of a confusion matrix that is drawn whole; of more the most confused ones are."""
CELL, MARGIN, SIDE = 26, 10, 192
_MOST_CONFUSED, _NAME_WIDTH, _LINE, _TITLE = 24, 170, 16, 26
_BAR, _HALF, _FIGURE = 18, 150, 70
_WHITE, _INK, _GREY = (255, 255, 255), (25, 28, 33), (110, 115, 122)
RIGHT, WRONG = (22, 110, 60), (190, 40, 30)
AGREE, CONFUSED = (31, 98, 172), (214, 92, 30)


def shade(colour: Colour, share: float) -> Colour:
    """White at a share of 0, the colour at 1.

    Example:
        >>> shade((0, 100, 200), 0.5)
        (128, 178, 228)
    """
    red, green, blue = (round(255 + (part - 255) * share) for part in colour)
    return red, green, blue


def most_confused(cells: Mapping[tuple[int, int], int], classes: int) -> list[int]:
    """The classes that are drawn of a confusion matrix, samples by (true class, predicted class).

    All, or those of the most frequent confusions, in order.

    Example:
        >>> most_confused({(0, 0): 9, (7, 3): 2, (5, 5): 1}, 4), most_confused({(7, 3): 2, (5, 5): 9}, 400)
        ([0, 1, 2, 3], [3, 7])
    """
    if classes <= WRITTEN_OUT:
        return list(range(classes))
    chosen: set[int] = set()
    wrong = sorted(((-count, *cell) for cell, count in cells.items() if cell[0] != cell[1]))
    for _, true, predicted in wrong:
        if len(chosen | {true, predicted}) <= _MOST_CONFUSED:
            chosen |= {true, predicted}
    return sorted(chosen)


def confusion_image(cells: Mapping[tuple[int, int], int], names: Sequence[str], title: str) -> Image.Image:
    """A confusion matrix: rows are the true classes, columns the predicted ones, shaded by the share of the row.

    Of more than :data:`WRITTEN_OUT` classes the most confused are drawn, with a column for all the others, so that
    each row holds all samples of its class. Cells are :data:`CELL` pixels wide, the last ends :data:`MARGIN` before the
    right and the lower edge.
    """
    shown = most_confused(cells, len(names))
    place = {number: at for at, number in enumerate(shown)}
    columns = len(shown) + (len(shown) < len(names))
    counts = [[0] * columns for _ in shown]
    for (true, predicted), count in cells.items():
        if true in place:
            counts[place[true]][place.get(predicted, columns - 1)] += count
    labels = [drawable(names[number], number) for number in shown]
    across = [*labels, "others"][:columns]
    font, small = _font(12), _font(10)
    room = round(max((font.getlength(_fitted(label, font)) for label in across), default=0.0)) + 8
    left, top = MARGIN + room, MARGIN + _TITLE + _LINE + room
    heads = (title, f"rows: true class, columns: predicted{_left_out(len(shown), len(names))}")
    width = max(left + columns * CELL, *(MARGIN + round(_font(13).getlength(head)) for head in heads)) + MARGIN
    image = Image.new("RGB", (width, top + len(shown) * CELL + MARGIN), _WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), heads[0], _INK, _font(13))
    draw.text((MARGIN, MARGIN + _TITLE - 6), heads[1], _GREY, _font(12))
    left = width - MARGIN - columns * CELL
    for column, label in enumerate(across):
        _upright(image, label, (left + column * CELL, top - 4))
    for row, label in enumerate(labels):
        y = top + row * CELL
        draw.text((left - 6, y + CELL / 2), _fitted(label, font), _INK, font, anchor="rm")
        total = sum(counts[row])
        for column, count in enumerate(counts[row]):
            x, share = left + column * CELL, count / max(1, total)
            is_right = column < len(shown) and shown[column] == shown[row]
            fill = shade(AGREE if is_right else CONFUSED, share)
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill, (232, 234, 237))
            if count:
                ink = _WHITE if share > 0.6 else _INK
                draw.text((x + CELL / 2 - 1, y + CELL / 2 - 1), _short(count), ink, small, anchor="mm")
    return image


def _left_out(shown: int, classes: int) -> str:
    return f"; the {shown} most confused of {classes} classes" if shown < classes else ""


@dataclass(frozen=True)
class Bar:
    """A class of a bar chart: its name, its samples, and the difference, from -1 to 1."""

    name: str
    samples: int
    difference: float


def bars_image(bars: Sequence[Bar], title: str, note: str) -> Image.Image:
    """Differences from -1 to 1 as bars to the left and right of a line, in points, in the order in which they come."""
    font = _font(12)
    left = MARGIN + max(round(max((font.getlength(_fitted(bar.name, font)) for bar in bars), default=0.0)), 30) + 8
    width = max(
        left + 2 * _HALF + 2 * _FIGURE, *(2 * MARGIN + round(_font(13).getlength(text)) for text in (title, note))
    )  # fmt: skip
    image = Image.new("RGB", (width, 2 * MARGIN + _TITLE + _LINE + max(1, len(bars)) * _BAR), _WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, _INK, _font(13))
    draw.text((MARGIN, MARGIN + _TITLE - 6), note, _GREY, _font(12))
    middle = left + _FIGURE + _HALF
    for place, bar in enumerate(bars):
        y = MARGIN + _TITLE + _LINE + place * _BAR
        end = middle + round(_HALF * bar.difference)
        draw.text((left - 6, y + _BAR / 2), _fitted(bar.name, font), _INK, font, anchor="rm")
        draw.rectangle((min(middle, end), y + 2, max(middle, end), y + _BAR - 3), AGREE if end >= middle else CONFUSED)
        told = f"{100 * bar.difference:+.1f} ({bar.samples})"
        behind = bar.difference >= 0
        draw.text((end + (5 if behind else -5), y + _BAR / 2), told, _INK, _font(10), anchor="lm" if behind else "rm")
    draw.line((middle, MARGIN + _TITLE + _LINE, middle, image.height - MARGIN), _GREY)
    return image


def clip_images(frames: Tensor, lines: Sequence[tuple[str, Colour]]) -> list[Image.Image]:
    """An image for each of the uint8 frames (T, 3, H, W), with lines of text in their colours below it.

    Small frames are enlarged by a whole factor without smoothing, large ones made :data:`SIDE` pixels wide.
    """
    font, texts = _font(12), [_fitted(text, _font(12), SIDE - 4) for text, _ in lines]
    made = []
    for pixels in frames:
        frame = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        longer = max(frame.size)
        if longer > SIDE:
            frame = frame.resize(tuple(max(1, round(x * SIDE / longer)) for x in frame.size), Image.Resampling.BILINEAR)  # type: ignore[arg-type]
        elif SIDE // longer > 1:
            frame = frame.resize(tuple(x * (SIDE // longer) for x in frame.size), Image.Resampling.NEAREST)  # type: ignore[arg-type]
        image = Image.new("RGB", (SIDE, frame.height + 4 + _LINE * len(lines)), _WHITE)
        image.paste(frame, ((SIDE - frame.width) // 2, 0))
        draw = ImageDraw.Draw(image)
        for place, (text, (_, colour)) in enumerate(zip(texts, lines, strict=True)):
            draw.text((2, frame.height + 2 + _LINE * place), text, colour, font)
        made.append(image)
    return made


def drawable(name: str, number: int) -> str:
    """A class name as the font here can draw it, Latin letters; the class's number for any other.

    Example:
        >>> drawable("jump", 3), drawable("跳", 3)
        ('jump', 'class 3')
    """
    text = printable(name)
    return text if text and all(ord(letter) < 0x250 for letter in text) else f"class {number}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float = _NAME_WIDTH) -> str:
    """The text, its end left out where it is wider than that."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _upright(image: Image.Image, text: str, at: tuple[int, int]) -> None:
    """Write upwards from the lower left corner of a column."""
    font = _font(12)
    text = _fitted(text, font)
    label = Image.new("RGB", (max(1, round(font.getlength(text))), CELL - 1), _WHITE)
    ImageDraw.Draw(label).text((0, CELL / 2), text, _INK, font, anchor="lm")
    turned = label.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (at[0], at[1] - turned.height))


def _short(count: int) -> str:
    """A count in at most four characters, up to ten million."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 10_000 else f"{count // 1000}k"
