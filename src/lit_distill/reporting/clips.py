"""The clips that two models take for different things, as strips of their frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lit_distill._screen import percent
from lit_distill.reporting.charts import shown
from lit_distill.reporting.evidence import Pair, RunEvidence

_FRAMES, _SIDE, _GAP, _QUALITY = 8, 96, 2, 80


def changed(pair: Pair, most: int) -> list[tuple[str, list[int]]]:
    """Groups of at most ``most`` samples, by their places in the pair, those that say most first.

    Of two runs: what b has right and a has wrong, and the other way round, by how much more probability the one gives
    the true class. Of two models of one run: where b is furthest from a by KL(a || b), of those that they take for
    different classes.
    """
    right_a, right_b = pair.right
    place = torch.arange(len(pair.target))
    if pair.within:
        differ = pair.log_a.argmax(1) != pair.log_b.argmax(1)
        title = f"where {pair.b.label} is furthest from {pair.a.label}"
        return [(title, _highest(pair.divergences, differ, most))]
    margin = pair.log_b.exp()[place, pair.target] - pair.log_a.exp()[place, pair.target]
    return [
        (f"{pair.b.label} is right, {pair.a.label} is not", _highest(margin, right_b & ~right_a, most)),
        (f"{pair.a.label} is right, {pair.b.label} is not", _highest(-margin, right_a & ~right_b, most)),
    ]


def clip_figures(pair: Pair, places: Sequence[int]) -> list[str]:
    """A figure for each of these places in the pair: frames, class, and what either model says of it."""
    names, figures = pair.home.class_names, []
    for place in places:
        position = int(pair.index[place])
        picture, frames = strip(pair.home, position)
        name = pair.home.names[position] if pair.home.names else f"sample {position}"
        target, says = int(pair.target[place]), ""
        for judged, log in ((pair.a, pair.log_a[place]), (pair.b, pair.log_b[place])):
            top, of_true = float(log.max().exp()), float(log[target].exp())
            says += f"<p>{shown(judged.label)}: <b>{shown(names[int(log.argmax())])}</b> {_whole(top)}"
            says += "</p>" if int(log.argmax()) == target else f", true class {_whole(of_true)}</p>"
        true = f"<b>{shown(names[target])}</b>"
        figures.append(
            f'<figure class="clip"><figcaption>{true} · {shown(name)}</figcaption>'
            f'<img alt="frames of {shown(name)}" style="max-width:min(100%,{7 * frames}rem)" src="{picture}">'
            f"{says}</figure>"
        )
    return figures


def strip(evidence: RunEvidence, position: int) -> tuple[str, int]:
    """At most eight frames of a sample of a run's data, side by side, as a JPEG in a data: address; and how many.

    Raises:
        ValueError: the data set gives something else than uint8 clips or images.
    """
    clip = evidence.data.datasets[evidence.split][position][0]  # type: ignore[attr-defined]
    if not isinstance(clip, Tensor) or clip.dtype != torch.uint8 or clip.ndim not in (3, 4, 5):
        raise ValueError(
            "frames are shown of data sets that give uint8 clips (T, 3, H, W), views of them, or images (3, H, W), "
            f"got {getattr(clip, 'dtype', type(clip).__name__)} {tuple(getattr(clip, 'shape', ()))}: give clips=0"
        )
    frames = clip[None] if clip.ndim == 3 else clip[len(clip) // 2] if clip.ndim == 5 else clip
    count = min(_FRAMES, len(frames))
    chosen = frames[[(2 * j + 1) * len(frames) // (2 * count) for j in range(count)]]
    side = min(_SIDE, *chosen.shape[-2:])
    images = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in chosen]
    wide = Image.new("RGB", (count * (side + _GAP) - _GAP, side), "white")
    for place, image in enumerate(images):
        wide.paste(image.resize((side, side), Image.Resampling.BILINEAR), (place * (side + _GAP), 0))
    content = io.BytesIO()
    wide.save(content, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", count


def _whole(share: float) -> str:
    """A share whose sign stays in its line."""
    return percent(share).replace(" ", "\u00a0")


def _highest(scores: Tensor, chosen: Tensor, most: int) -> list[int]:
    places = chosen.nonzero()[:, 0]
    order = scores[places].argsort(descending=True, stable=True)
    return [int(place) for place in places[order][:most]]
