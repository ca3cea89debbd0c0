"""How the parameters of layers lie: one subtree a layer, or stacked, so that one program is scanned over them.

Layers that are equal but for the numbers in them are one stack. Where they differ in turn (a window in five of six,
say) the scan goes over the period of the pattern, and each place in it has a stack of its own. Names say all of it:

    layers_7/…                one layer
    layers/…                  all layers, stacked
    layers_0_60_6/layer_2/…   layers 2, 8, 14, … 56: of each period of 6 from layer 0 to 59 the third

A layout is a word: `unrolled`, `scan` (all layers in one stack), or the spans that are scanned, one after the other, as
`0_60_6 60_62_1`. All of this works on anything shaped like the parameters: gradients, moments, adapters. A layout is a
property of the compiled program, not of a checkpoint, so everything that is stored says which one it has.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sft_jax.models.config import DecoderConfig

SCAN, UNROLLED = "scan", "unrolled"
_NAME = r"layers(?:_(?P<layer>\d+)|_(?P<start>\d+)_(?P<stop>\d+)_(?P<period>\d+)/layer_(?P<place>\d+))?"
_LAYERS = re.compile(rf"(?P<before>^|/){_NAME}/")
_TOP = re.compile(r"layers(_\d+|_\d+_\d+_\d+)?")

Tree = Any


@dataclasses.dataclass(frozen=True)
class Span:
    """Layers that one scan goes over, a period at a time.

    Attributes:
        start: first layer.
        stop: behind the last.
        period: layers that the program of the scan has.
    """

    start: int
    stop: int
    period: int

    @property
    def name(self) -> str:
        """Of the subtree with its stacks."""
        return f"layers_{self}"

    @property
    def length(self) -> int:
        """How often the scan repeats its program."""
        return (self.stop - self.start) // self.period

    def layers(self, place: int) -> range:
        """The layers at one place of the period."""
        return range(self.start + place, self.stop, self.period)

    def __str__(self) -> str:
        return f"{self.start}_{self.stop}_{self.period}"


def resolved(layout: str, config: DecoderConfig) -> str:
    """The layout that `scan` means for the layers of this decoder; any other is what it says."""
    if layout != SCAN:
        return layout
    spans = spans_of(config)
    return SCAN if len(spans) == 1 and spans[0].period == 1 else " ".join(map(str, spans))


def spans_in(layout: str) -> tuple[Span, ...]:
    """The spans of a resolved layout; none where all layers are one stack, or none is stacked."""
    return () if layout in (SCAN, UNROLLED) else tuple(Span(*map(int, word.split("_"))) for word in layout.split())


@functools.lru_cache(maxsize=64)
def spans_of(config: DecoderConfig) -> tuple[Span, ...]:
    """The spans, one behind the other, whose periods have the fewest layers together: the smallest program."""
    return _spans([config.of_layer(index) for index in range(config.num_layers)])


def _spans(kinds: Sequence[Any]) -> tuple[Span, ...]:
    """Of layers of these kinds; of programs as small, that with the fewest scans."""
    best: list[tuple[int, int, tuple[Span, ...]]] = [(0, 0, ())]
    for stop in range(1, len(kinds) + 1):
        options = []
        for span in _spans_to(kinds, stop):
            size, scans, before = best[span.start]
            options.append((size + span.period, scans + 1, (*before, span)))
        best.append(min(options, key=lambda option: option[:2]))
    return best[-1][2]


def _spans_to(kinds: Sequence[Any], stop: int) -> list[Span]:
    """All spans that end before layer `stop`."""
    found = []
    for period in range(1, stop + 1):
        start = stop - period
        while start >= 0:
            found.append(Span(start, stop, period))
            if start < period or kinds[start - period : start] != kinds[start : start + period]:
                break
            start -= period
    return found


def numbers_of(path: str, length: int) -> range | None:
    """The layers that an array of parameters is of; None outside of the layers.

    Args:
        path: of the array, wherever in a tree the parameters are.
        length: of its first axis, which counts layers where they are stacked.
    """
    found = _LAYERS.search(path)
    if found is None:
        return None
    if found["layer"] is not None:
        return range(int(found["layer"]), int(found["layer"]) + 1)
    return range(length) if found["start"] is None else _span(found).layers(int(found["place"]))


def is_stacked(path: str) -> bool:
    """Whether the first axis of the array at a path counts layers."""
    found = _LAYERS.search(path)
    return found is not None and found["layer"] is None


def of_one_layer(path: str) -> str:
    """The path with `layers/` in place of the layers that it is of: the same in every layout."""
    return _LAYERS.sub(r"\g<before>layers/", path)


def without_layers(path: str) -> str:
    """The path inside of a layer, for one that is in none the path itself."""
    return _LAYERS.sub(r"\g<before>", path)


def place_in(layout: str, path: str, num_layers: int) -> tuple[str, tuple[int, int] | None]:
    """Where the parameter at `layers_7/…` lies in a resolved layout: the path there, and (number, count) in its stack.

    The second is None where it is not stacked.
    """
    found = _LAYERS.match(path)
    if found is None or layout == UNROLLED:
        return path, None
    number, rest = int(found["layer"]), path[found.end() :]
    if layout == SCAN:
        return f"layers/{rest}", (number, num_layers)
    span = next(span for span in spans_in(layout) if span.start <= number < span.stop)
    repeat, place = divmod(number - span.start, span.period)
    return f"{span.name}/layer_{place}/{rest}", (repeat, span.length)


def layout_of(tree: Tree) -> str | None:
    """The layout of a parameter-like tree; None where it holds no layers."""
    if "layers" in tree:
        return SCAN
    found = [re.fullmatch(_TOP, name) for name in tree]
    words = [match[1][1:] for match in found if match is not None]
    if not words:
        return None
    return UNROLLED if "_" not in words[0] else " ".join(sorted(words, key=lambda word: int(word.split("_")[0])))


def to_layout(tree: Tree, layout: str, stack: Callable = jnp.stack) -> Tree:
    """`tree` with its layers in a resolved layout; the tree itself where they are so already.

    Args:
        tree: nested dict with the layers at its top.
        layout: the layout wanted.
        stack: how leaves are stacked, `np.stack` for NumPy trees.
    """
    current = layout_of(tree)
    if current is None or current == layout:
        return tree
    tree = tree if current == UNROLLED else _unstack(tree)
    return tree if layout == UNROLLED else _stack(tree, layout, stack)


def _stack(tree: Tree, layout: str, stack: Callable) -> Tree:
    layers = {int(name.removeprefix("layers_")): layer for name, layer in tree.items() if _TOP.fullmatch(name)}
    rest = {name: leaf for name, leaf in tree.items() if not _TOP.fullmatch(name)}
    stacked = lambda numbers: jax.tree.map(lambda *leaves: stack(leaves), *(layers[number] for number in numbers))
    if layout == SCAN:
        if sorted(layers) != list(range(len(layers))):
            raise ValueError(f"layers {sorted(layers)} do not count from 0 without a gap")
        return {**rest, "layers": stacked(range(len(layers)))}
    for span in spans_in(layout):
        places = {f"layer_{place}": span.layers(place) for place in range(span.period)}
        held = {name: numbers for name, numbers in places.items() if any(number in layers for number in numbers)}
        for numbers in held.values():
            if missing := [number for number in numbers if number not in layers]:
                raise ValueError(f"layers {missing} are missing beside others of {list(numbers)}")
        if held:
            rest[span.name] = {name: stacked(numbers) for name, numbers in held.items()}
    return rest


def _unstack(tree: Tree) -> Tree:
    unstacked = {}
    for name, subtree in tree.items():
        if name == "layers":
            unstacked |= _layers_of(subtree, range(jax.tree.leaves(subtree)[0].shape[0]))
        elif _TOP.fullmatch(name):
            for place, stacked in subtree.items():
                found = _LAYERS.match(f"{name}/{place}/")
                unstacked |= _layers_of(stacked, _span(found).layers(int(found["place"])))
        else:
            unstacked[name] = subtree
    return unstacked


def _layers_of(stacked: Tree, numbers: range) -> Tree:
    return {
        f"layers_{number}": jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
        for index, number in enumerate(numbers)
    }


def _span(found: re.Match) -> Span:
    return Span(*(int(found[name]) for name in ("start", "stop", "period")))
