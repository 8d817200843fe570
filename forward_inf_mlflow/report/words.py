"""Words: two texts side by side, with the words marked that differ."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from markupsafe import Markup

from forward_inf_mlflow.report.formats import visible

#: Words of a text that are compared, and words of it that are shown.
_COMPARED, _SHOWN = 400, 120
#: Equal words that stay on either side of a difference where many are alike.
_AROUND = 6
_ELIDED = Markup("<span class=fine>…</span>")

Piece = tuple[bool, Sequence[str]]  # whether it differs, and its words


def marked(one: str, other: str) -> tuple[Markup, Markup]:
    """Return both texts as markup, every word escaped, those that differ in ``<mark>``.

    Of long runs of equal words only those beside a difference are kept.
    """
    a, b = one.split()[:_COMPARED], other.split()[:_COMPARED]
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, i, j, k, m in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        left.append((kind != "equal", a[i:j]))
        right.append((kind != "equal", b[k:m]))
    return _written(left), _written(right)


def _written(pieces: list[Piece]) -> Markup:
    written: list[Markup] = []
    room = _SHOWN
    for place, (differs, words) in enumerate(pieces):
        if not differs:
            first, last = place == 0, place == len(pieces) - 1
            written += _shortened(words, after=not first, before=not last)
            room -= min(len(words), 2 * _AROUND)
        elif words:
            shown = Markup(" ").join(map(visible, words[: max(0, room)]))
            written.append(Markup("<mark>{}</mark>").format(shown))
            room -= len(words)
        if room <= 0 and place < len(pieces) - 1:
            written.append(_ELIDED)
            break
    return Markup(" ").join(written)


def _shortened(words: Sequence[str], *, after: bool, before: bool) -> list[Markup]:
    """Return a run of equal words: what stands after a difference, and before the next."""
    head, tail = (_AROUND if wanted else 0 for wanted in (after, before))
    if not after and not before:  # the texts are the same
        head = _SHOWN
    if len(words) <= head + tail + 2:
        return [_escaped(words)]
    kept = [_escaped(words[:head])] if head else []
    kept.append(_ELIDED)
    return [*kept, _escaped(words[len(words) - tail :])] if tail else kept


def _escaped(words: Sequence[str]) -> Markup:
    return Markup(" ").join(map(visible, words))
