"""Checks of types say what typeguard says, and say yes to what is ordinary without asking it."""

import collections
import dataclasses
import functools
import inspect
import io
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import IO, Any, Literal, NamedTuple, Protocol, SupportsIndex, TypedDict, TypeVar

import jax
import numpy as np
import pytest
import typeguard
from jaxtyping import Float, Int, TypeCheckError

from tests.type_checks import checked, plainly


class Pair(NamedTuple):
    name: str
    sizes: tuple[int, ...] = ()


Plain = collections.namedtuple("Plain", ["row", "share"])  # members without types


class Named(TypedDict):
    name: str


class Sized(Protocol):
    def __len__(self) -> int: ...


@dataclasses.dataclass
class Box:
    size: int

    def scaled(self, by): ...


class LargerBox(Box): ...


@functools.wraps(lambda x: x)
def wrapping(*arguments): ...


class Signed:
    def __call__(self, x): ...


def unsigned(*arguments): ...


unsigned.__signature__ = inspect.signature(wrapping)


class Sizes(NamedTuple):
    a: Float[np.ndarray, " n"]
    b: Float[np.ndarray, " n"]


Row, BoxKind, Number = TypeVar("Row"), TypeVar("BoxKind", bound=Box), TypeVar("Number", int, float)
VALUES = [
    *(None, True, 3, 2.5, 1j, "a", b"a", bytearray(b"a"), np.float64(1), np.int64(1), np.zeros(2), np.zeros((2, 3))),
    *([], [1, 2], [1, "a"], ["a"], (), (1,), (1, "a"), (1, 2, 3), ("a", (1, 2)), {1}, {"a"}, frozenset({1})),
    *({}, {"a": 1}, {"a": "b"}, {1: 2}, {"name": "a"}, OrderedDict(a=1), range(3), iter([1]), io.StringIO()),
    *(Pair("a"), Pair("a", (1, 2)), Pair(1), Pair("a", ("b",)), Plain(0, 1.0)),
    *(Box(1), LargerBox(1), Box, LargerBox, int),
    *(len, lambda: 1, lambda x: x, lambda x, y: x, lambda *, key: key, lambda x, y=1: x, lambda x, *more: x),
    *(functools.partial(lambda x, y: x, 1), functools.partial(lambda x, y: x, y=1), functools.partial(lambda: 1, 1)),
    *(Box(1).scaled, Box.scaled, wrapping, jax.jit(wrapping), functools.partial(wrapping, 1), Signed(), unsigned),
]
TYPES = [
    *(Any, None, object, bool, int, float, complex, str, bytes, type, list, dict, tuple, set, np.ndarray, np.float64),
    *(list[int], list[Any], list[list[int]], tuple[int], tuple[int, str], tuple[int, ...], tuple[()], set[int]),
    *(dict[str, int], dict[str, Any], Mapping[str, int], Sequence[int], Sequence[str], Set[int], frozenset[int]),
    *(int | None, int | str, list[int] | tuple[int, ...] | None, Literal["a", 3], Literal[True] | str, Iterator[int]),
    *(Callable, Callable[..., int], Callable[[int], int], Callable[[], int] | None, Callable[[int, str], int]),
    *(type[Box], type[Row], type[BoxKind], type[Number], type[int | str], Row, BoxKind, Number, IO[str], SupportsIndex),
    *(Pair, Plain, Named, Sized, Box, list[Pair], dict[str, Pair | int], jax.Array, Float[np.ndarray, "a b"]),
]


@pytest.mark.parametrize("expected", TYPES, ids=str)
def test_verdicts_are_typeguards(expected):
    def takes(value): ...

    def gives(value):
        return value

    takes.__annotations__, gives.__annotations__ = {"value": expected}, {"return": expected}
    both = [(f, checked(f), typeguard.typechecked(f)) for f in (takes, gives)]
    for value in VALUES:
        for function, ours, theirs in both:
            assert accepts(ours, value) == accepts(theirs, value), (function.__name__, value)


def accepts(function, value) -> bool:
    try:
        function(value)
    except (TypeError, ValueError):  # an array in a literal
        return False
    return True


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (int, 3),
        (float, 3),
        (list[str] | None, ["a"]),
        (Sequence[Pair], (Pair("a"), Pair("b", (1,)))),
        (Mapping[str, int], {"a": 1}),
        (dict[str, tuple[int, str]], {"a": (1, "b")}),
        (Literal["a"], "a"),
        (Callable[[int], int], wrapping),
        (Callable[[int], int], Box(1).scaled),
        (Callable[[int], int], functools.partial(lambda x, y: x, 1)),
        (Row, 3),
        (BoxKind, LargerBox(1)),
        (Sized, []),
        (type[BoxKind], LargerBox),
        (SupportsIndex, 3),
        (Float[np.ndarray, "a b"], np.zeros((2, 3))),
    ],
    ids=lambda value: str(value).partition(" at 0x")[0],  # the same in every process
)
def test_the_ordinary_is_not_asked_for(expected, value, monkeypatch):
    def takes(value): ...

    takes.__annotations__ = {"value": expected}
    assert plainly(expected)(value)
    ours = checked(takes)
    monkeypatch.setattr(typeguard, "_CallMemo", None)  # with which typeguard begins
    ours(value)


def test_arguments_by_place_by_name_and_more_of_both():
    @checked
    def takes(a: int, /, b: str = "b", *more: int, c: float = 1.0, **named: str): ...

    takes(1)
    takes(1, "b", 2, 3, c=2, d="d")
    takes(1, b="b")
    for places, names in ((("a",), {}), ((1, 2), {}), ((1, "b", "c"), {}), ((1,), {"c": "c"}), ((1,), {"a": 1})):
        with pytest.raises(TypeError, match="parameter"):
            takes(*places, **names)


def test_dimensions_are_one_number_in_a_call():
    @checked
    def product(a: Float[np.ndarray, "m k"], b: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "m n"]:
        return (a @ b)[:, : b.shape[1]]

    product(np.zeros((2, 3)), np.zeros((3, 4)))
    with pytest.raises(TypeCheckError, match="parameter 'b'"):
        product(np.zeros((2, 3)), np.zeros((4, 4)))

    @checked
    def of_a_tuple(sizes: Sizes) -> None: ...

    of_a_tuple(Sizes(np.zeros(2), np.zeros(2)))
    with pytest.raises(TypeCheckError, match="parameter 'sizes'"):
        of_a_tuple(Sizes(np.zeros(2), np.zeros(3)))

    @checked
    def wrong(a: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return a[1:]

    with pytest.raises(TypeCheckError, match="return value"):
        wrong(np.zeros(3, int))


def test_the_package_is_checked():
    """What an import hook decorates is decorated with this."""
    from sft_jax.models.rope import rotary_of

    with pytest.raises(TypeCheckError, match="parameter 'layer'"):
        rotary_of("not a config")


def test_what_is_not_plain_is_given_once():
    """A result that has to be asked for is not computed again."""
    calls = []

    @checked
    def sized(values: list[int]) -> Literal[1, 2]:
        calls.append(len(values))
        return len(values)

    for _ in range(3):
        assert sized([1, 2]) == 2
    assert calls == [2, 2, 2]
    with pytest.raises(TypeCheckError, match="parameter 'values'"):
        sized(["a"])


def test_functions_made_anew_keep_their_own_types():
    def made(kind):
        @checked
        def takes(value: kind): ...

        return takes

    made(int)(1)
    made(str)("a")
    with pytest.raises(TypeCheckError):
        made(str)(1)


def test_dataclasses_of_the_package_are_checked():
    from sft_jax.models.config import AdapterSpec

    assert AdapterSpec("lora", dropout=True).dropout
    with pytest.raises(TypeCheckError, match="parameter 'dropout'"):
        AdapterSpec("lora", dropout="yes")
