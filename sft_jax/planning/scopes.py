"""From the name of an operation in a compiled program to the part of the step that it belongs to."""

import re

# Wrappers that transformations put around names, and steps of control flow, which say nothing of where it belongs.
_WRAPPER = re.compile(
    r"^(?:jit|jvp|transpose|vmap|shard_map|custom_vjp_call|custom_jvp_call|remat|checkpoint)\((.*)\)$"
)
_FLOW = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "remat", "shard_map", "pjit", ""}
_METHOD = re.compile(r"^_?[A-Za-z]\w*\.\w+$")  # `Decoder.hidden`, `attention._apart`
_PLACE = re.compile(r"^layer_\d+$")
_BRANCH = re.compile(r"^branch_\d+(_fun)?$")


def scope_of(op_name: str) -> str:
    """`layers/attention`, `head_and_loss`, `embedding`, `optimizer`: the part of the step, empty where it has no name.

    Args:
        op_name: of the metadata: `jit(train_step)/transpose(jvp(Decoder.hidden))/while/body/layers/ffn/up/dot_general`.
    """
    parts = [name for name in map(_unwrapped, _parts(op_name)) if _is_place(name)]
    if not parts:
        return ""
    first = re.sub(r"(_\d+)+$", "", parts[0])  # layers_3, where they are not scanned; layers_0_60_6/layer_2
    rest = [name for name in parts[1:] if not _PLACE.match(name)]
    return f"{first}/{rest[0]}" if first == "layers" and len(rest) > 1 else first


def phase_of(op_name: str) -> str:
    """`forward`, `recomputed` (in the backward pass) or `backward`; empty outside of both."""
    if "rematted_computation" in op_name:
        return "recomputed"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else ""


def _parts(op_name: str) -> list[str]:
    """The names between slashes that are not in parentheses, without the last, which is the operation itself."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(op_name):
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "/" and depth == 0:
            parts.append(op_name[start:place])
            start = place + 1
    return parts


def _unwrapped(name: str) -> str:
    """What transformations are of; of a function that is compiled by itself (`jit(_take)`) nothing: it is no place."""
    while found := _WRAPPER.match(name):
        if name.startswith("jit("):
            return ""
        name = found[1]
    return name


def _is_place(name: str) -> bool:
    return name not in _FLOW and not _METHOD.match(name) and not _BRANCH.match(name)
