"""The layers of atoms and the radial networks as torch operators, in C on a CPU.

`foundation::mix` is a sum of equivariant linear maps, z = Σ_i x_i W_i: linear in each argument, as its gradients
v W_iᵀ and x_iᵀ v are. Along tangents t of x and T of W, the gradient of the latter for v is Σ_i (t_i W_i + x_i T_i).

`foundation::gate` is f(z), with f'(z)ᵀ u as its gradient. The gradient of that along a tangent q is f'(z) q for u, and
that of u · f'(z) q for z; C computes both together.

`foundation::perceptron` is a network of matrices with SiLU between them, differentiated in the same way, layer by
layer: with p_i = v_i W_i, v_{i+1} = silu(p_i). Third derivatives are refused.
"""

import ast
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from foundation.kernels.cpu.dense import (
    Block,
    LinearMap,
    Nonlinearity,
    activated,
    activated_along,
    activated_back,
    multiply,
)
from foundation.kernels.differentiable import Operator, needed


@cache
def named_maps(name: str) -> tuple[LinearMap, ...]:
    """Return linear maps with a common output from their name."""
    return tuple(
        LinearMap(tuple(Block(*block) for block in blocks), *sizes) for blocks, *sizes in ast.literal_eval(name)
    )


def name_of_maps(maps: tuple[LinearMap, ...]) -> str:
    """Return the text of the numbers of linear maps, from which `named_maps` makes the same."""
    return repr(tuple((tuple(map(tuple, each.blocks)), each.inputs, each.outputs) for each in maps))


@cache
def named_gate(name: str) -> Nonlinearity:
    """Return a gate from its name."""
    return Nonlinearity(*ast.literal_eval(name))


def name_of_gate(gate: Nonlinearity) -> str:
    """Return the text of the numbers of a gate, from which `named_gate` makes the same."""
    return repr(tuple(gate))


def _mix_in_c(inputs: list[Tensor], weights: list[Tensor], name: str) -> Tensor:
    """Return the sum.

    Args:
        inputs: Features of each map, (atoms, columns).
        weights: Flat weights of each map.
        name: Name of the maps.
    """
    maps = named_maps(name)
    z = inputs[0].new_zeros(len(inputs[0]), maps[0].outputs)
    for each, x, w in zip(maps, _contiguous(inputs), _contiguous(weights), strict=True):
        each.apply(x, w, z)
    return z


def _mix_backward_in_c(
    inputs: list[Tensor], weights: list[Tensor], gradient: Tensor, wanted: list[bool], name: str
) -> list[Tensor]:
    """Return the wanted ones of the gradients for the inputs, then the weights."""
    maps, inputs, weights, v = named_maps(name), _contiguous(inputs), _contiguous(weights), gradient.contiguous()
    found = []
    for place in _true(wanted):
        i = place % len(inputs)
        found.append(torch.zeros_like((*inputs, *weights)[place]))
        if place < len(inputs):
            maps[i].back(v, weights[i], found[-1])
        else:
            maps[i].weights(inputs[i], v, found[-1])
    return found


def _mix_double_backward_in_c(
    operands: list[Tensor], tangents: list[Tensor], along: list[bool], wanted: list[bool], name: str
) -> list[Tensor]:
    """Return the wanted ones of the gradients for inputs, weights and gradient, along tangents of inputs and weights.

    Args:
        operands: Inputs and weights of `mix`, then the gradient of `mix_backward`.
        tangents: One for every true place of along.
        along: The inputs, then the weights, that have a tangent.
        wanted: The inputs, then the weights, then the gradient: which results are wanted.
        name: Name of the maps.
    """
    maps = named_maps(name)
    *operands, v = _contiguous(operands)
    moved, count = dict(zip(_true(along), _contiguous(tangents), strict=True)), len(maps)
    found = [torch.zeros_like((*operands, v)[place]) for place in _true(wanted)]
    for into, place in zip(found, _true(wanted), strict=True):
        i = place % count
        if place == 2 * count:
            for other, tangent in moved.items():
                x, w = operands[other % count], operands[other % count + count]
                maps[other % count].apply(*((tangent, w) if other < count else (x, tangent)), into)
        elif place < count and i + count in moved:
            maps[i].back(v, moved[i + count], into)
        elif place >= count and i in moved:
            maps[i].weights(moved[i], v, into)
    return found


def _gate_in_c(z: Tensor, name: str) -> Tensor:
    """Return f(z)."""
    return activated(named_gate(name), z.contiguous())


def _gate_backward_in_c(z: Tensor, gradient: Tensor, name: str) -> Tensor:
    """Return f'(z)ᵀ u."""
    return activated_back(named_gate(name), z.contiguous(), gradient.contiguous())


def _gate_double_backward_in_c(z: Tensor, gradient: Tensor, tangent: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return f'(z) q, and the gradient of u · f'(z) q for z."""
    return activated_along(named_gate(name), z.contiguous(), gradient.contiguous(), tangent.contiguous())


def _perceptron_in_c(rows: Tensor, weights: list[Tensor], scales: list[float]) -> list[Tensor]:
    """Return the result of a network without biases and, behind it, the layers' results before SiLU.

    Args:
        rows: Inputs of the first layer.
        weights: Matrix of every layer.
        scales: Factor of every matrix.
    """
    values, before = rows, []
    for weight, scale in zip(weights, scales, strict=True):
        before.append(multiply(values, weight, scale))
        values = activated(_silu(before[-1]), before[-1]) if len(before) < len(weights) else before[-1]
    return [before[-1], *before[:-1]]


def _perceptron_backward_in_c(
    rows: Tensor, weights: list[Tensor], before: list[Tensor], gradient: Tensor, scales: list[float], wanted: list[bool]
) -> list[Tensor]:
    """Return the wanted ones of the gradients for the rows and the weights, then those of the layers behind SiLU."""
    found: dict[int, Tensor] = {}
    ups: list[Tensor] = []
    v = gradient
    for i in reversed(range(len(weights))):
        if wanted[1 + i]:
            values = activated(_silu(before[i - 1]), before[i - 1]) if i > 0 else rows
            found[1 + i] = multiply(values.t(), v, scales[i])
        if any(wanted[: 1 + i]):
            u = multiply(v, weights[i].t(), scales[i])
            ups.insert(0, u)
            v = activated_back(_silu(u), before[i - 1], u) if i > 0 else u
    found[0] = v
    return [*(found[place] for place in _true(wanted)), *(ups[1:] if wanted[0] else [])]


def _perceptron_double_backward_in_c(
    rows: Tensor,
    weights: list[Tensor],
    before: list[Tensor],
    behind: list[Tensor],
    gradient: Tensor,
    tangents: list[Tensor],
    scales: list[float],
    along: list[bool],
    wanted: list[bool],
) -> list[Tensor]:
    """Return the wanted ones of the gradients for rows, weights and gradient, along tangents of rows and weights.

    Args:
        rows: Those of `perceptron`.
        weights: Those of `perceptron`.
        before: Results before SiLU, of `perceptron`.
        behind: Gradients for the results of SiLU, of `perceptron_backward`; none without a gradient of the rows.
        gradient: That of `perceptron_backward`.
        tangents: One for every true place of along.
        scales: Those of `perceptron`.
        along: The rows, then the weights, that have a tangent.
        wanted: The rows, then the weights, then the gradient: which results are wanted.
    """
    count = len(weights)
    moved = dict(zip(_true(along), tangents, strict=True))
    values = [rows, *(activated(_silu(p), p) for p in before)]
    ups = behind if len(behind) == count - 1 else _behind(weights, before, gradient, scales)
    downs = [*(activated_back(_silu(u), p, u) for p, u in zip(before, ups, strict=True)), gradient]
    changes, bends = [moved.get(0)], []
    for i in range(count):
        change, of_weight = changes[-1], moved.get(1 + i)
        b = None if change is None else multiply(change, weights[i], scales[i])
        if of_weight is not None:
            b = multiply(values[i], of_weight, scales[i], b, add=b is not None)
        if b is None or i + 1 == count:
            changes.append(b)
            bends.append(None)
        else:
            a, bend = activated_along(_silu(b), before[i], ups[i], b)
            changes.append(a)
            bends.append(bend)
    found: dict[int, Tensor] = {}
    if wanted[1 + count]:
        found[1 + count] = gradient.new_zeros(gradient.shape) if changes[-1] is None else changes[-1]
    of_values: Tensor | None = None
    for i in reversed(range(count)):
        e = None if i + 1 == count else bends[i]
        if of_values is not None:
            e = activated_back(_silu(of_values), before[i], of_values, e)
        change, of_weight = changes[i], moved.get(1 + i)
        if wanted[1 + i]:
            parts = [(a, b) for a, b in ((change, downs[i]), (values[i], e)) if a is not None and b is not None]
            found[1 + i] = _added([(a.t(), b) for a, b in parts], scales[i], weights[i])
        parts = [(a, b) for a, b in ((e, weights[i]), (downs[i], of_weight)) if a is not None and b is not None]
        of_values = _added([(a, b.t()) for a, b in parts], scales[i], values[i]) if parts else None
    found[0] = torch.zeros_like(rows) if of_values is None else of_values
    return [found[place] for place in _true(wanted)]


def _behind(weights: list[Tensor], before: list[Tensor], gradient: Tensor, scales: list[float]) -> list[Tensor]:
    """Return the gradients for the results of SiLU."""
    found: list[Tensor] = []
    v = gradient
    for i in reversed(range(1, len(weights))):
        found.insert(0, multiply(v, weights[i].t(), scales[i]))
        v = activated_back(_silu(found[0]), before[i - 1], found[0])
    return found


def _added(products: list[tuple[Tensor, Tensor]], scale: float, like: Tensor) -> Tensor:
    """Return the sum of scaled products, zero without any."""
    if not products:
        return torch.zeros_like(like)
    total = multiply(*products[0], scale)
    for left, right in products[1:]:
        multiply(left, right, scale, total, add=True)
    return total


def _silu(values: Tensor) -> Nonlinearity:
    return Nonlinearity(0, values.shape[1], (), 1.0, 1.0)


def _contiguous(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


def _true(flags: Sequence[bool]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]


def _spread(found: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Return the results in the places of the wanted ones, None elsewhere."""
    rest = iter(found)
    return [next(rest) if flag else None for flag in wanted]


def _keep_mix(ctx, inputs: tuple, output: Tensor) -> None:
    features, weights, ctx.name = inputs
    ctx.count = len(features)
    ctx.save_for_backward(*features, *weights)


def _mix_backward(ctx, gradient: Tensor):
    count, saved = ctx.count, ctx.saved_tensors
    wanted = needed(ctx, 2 * count)
    found = _spread(mix_backward(list(saved[:count]), list(saved[count:]), gradient, wanted, ctx.name), wanted)
    return found[:count], found[count:], None


def _keep_mix_backward(ctx, inputs: tuple, output: list[Tensor]) -> None:
    features, weights, gradient, ctx.wanted, ctx.name = inputs
    ctx.count = len(features)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*features, *weights, gradient)


def _mix_double_backward(ctx, tangents: list[Tensor | None]):
    count = ctx.count
    along = [tangent is not None for tangent in _spread(tangents, ctx.wanted)]
    asked = needed(ctx, 2 * count + 1)
    # linear in each: an input's gradient needs a tangent of its weight, and the other way round
    moves = [*along[count:], *along[:count], any(along)]
    wanted = [ask and move for ask, move in zip(asked, moves, strict=True)]
    given = [tangent for tangent in tangents if tangent is not None]
    found: list[Tensor] = []
    if any(wanted):
        found = mix_double_backward(list(ctx.saved_tensors), given, along, wanted, ctx.name)
    placed = _spread(found, wanted)
    return placed[:count], placed[count : 2 * count], placed[2 * count], None, None


def _keep_gate(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.name = inputs
    ctx.save_for_backward(*tensors)


def _gate_backward(ctx, gradient: Tensor):
    return gate_backward(*ctx.saved_tensors, gradient, ctx.name), None


def _gate_double_backward(ctx, tangent: Tensor):
    change, bend = gate_double_backward(*ctx.saved_tensors, tangent, ctx.name)
    return bend, change, None


def _keep_perceptron(ctx, inputs: tuple, output: list[Tensor]) -> None:
    rows, weights, ctx.scales = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(rows, *weights, *output[1:])


def _perceptron_backward(ctx, gradients: list[Tensor | None]):
    count = len(ctx.scales)
    if gradients[0] is None:
        return None, [None] * count, None
    rows, *saved = ctx.saved_tensors
    wanted = needed(ctx, 1 + count)
    found = perceptron_backward(rows, saved[:count], saved[count:], gradients[0], ctx.scales, wanted)
    placed = _spread(found[: sum(wanted)], wanted)
    return placed[0], placed[1:], None


def _keep_perceptron_backward(ctx, inputs: tuple, output: list[Tensor]) -> None:
    rows, weights, before, gradient, ctx.scales, ctx.wanted = inputs
    behind = output[sum(ctx.wanted) :]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*behind)
    ctx.save_for_backward(rows, *weights, *before, gradient, *behind)


def _perceptron_double_backward(ctx, tangents: list[Tensor | None]):
    count = len(ctx.scales)
    rows, *saved = ctx.saved_tensors
    weights, before, gradient, behind = (
        saved[:count],
        saved[count : 2 * count - 1],
        saved[2 * count - 1],
        saved[2 * count :],
    )
    placed = _spread(tangents[: sum(ctx.wanted)], ctx.wanted)
    along = [tangent is not None for tangent in placed]
    asked = needed(ctx, 2 * count + 1)
    wanted = [*asked[: 1 + count], asked[2 * count]]
    if not any(along):
        return None, [None] * count, [None] * (count - 1), None, None, None
    given = [tangent for tangent in placed if tangent is not None]
    found = perceptron_double_backward(rows, weights, before, behind, gradient, given, ctx.scales, along, wanted)
    placed = _spread(found, wanted)
    return placed[0], placed[1 : 1 + count], [None] * (count - 1), placed[1 + count], None, None


def _third(ctx, *gradients: object):
    raise NotImplementedError(
        "layers in C have no third derivatives: one can train on forces and stress, but not on their derivatives; use "
        "the torch backend for those"
    )


def _fake_mix(inputs: list[Tensor], weights: list[Tensor], name: str) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[0], named_maps(name)[0].outputs)


def _fake_mix_backward(
    inputs: list[Tensor], weights: list[Tensor], gradient: Tensor, wanted: list[bool], name: str
) -> list[Tensor]:
    return _fakes([*inputs, *weights], wanted)


def _fake_mix_double_backward(
    operands: list[Tensor], tangents: list[Tensor], along: list[bool], wanted: list[bool], name: str
) -> list[Tensor]:
    return _fakes(operands, wanted)


def _fake_gate(z: Tensor, name: str) -> Tensor:
    return z.new_empty(z.shape[0], named_gate(name).outputs)


def _fake_gate_backward(z: Tensor, gradient: Tensor, name: str) -> Tensor:
    return z.new_empty(z.shape)


def _fake_gate_double_backward(z: Tensor, gradient: Tensor, tangent: Tensor, name: str) -> tuple[Tensor, Tensor]:
    return z.new_empty(gradient.shape), z.new_empty(z.shape)


def _fakes(like: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [like[place].new_empty(like[place].shape) for place in _true(wanted)]


def _fake_perceptron(rows: Tensor, weights: list[Tensor], scales: list[float]) -> list[Tensor]:
    found = [rows.new_empty(rows.shape[0], weight.shape[1]) for weight in weights]
    return [found[-1], *found[:-1]]


def _fake_perceptron_backward(
    rows: Tensor, weights: list[Tensor], before: list[Tensor], gradient: Tensor, scales: list[float], wanted: list[bool]
) -> list[Tensor]:
    return [*_fakes([rows, *weights], wanted), *(p.new_empty(p.shape) for p in before if wanted[0])]


def _fake_perceptron_double_backward(
    rows: Tensor,
    weights: list[Tensor],
    before: list[Tensor],
    behind: list[Tensor],
    gradient: Tensor,
    tangents: list[Tensor],
    scales: list[float],
    along: list[bool],
    wanted: list[bool],
) -> list[Tensor]:
    return _fakes([rows, *weights, gradient], wanted)


mix = Operator("foundation::mix", _mix_in_c, _fake_mix, _keep_mix, _mix_backward)
mix_backward = Operator(
    "foundation::mix_backward", _mix_backward_in_c, _fake_mix_backward, _keep_mix_backward, _mix_double_backward
)
mix_double_backward = Operator(
    "foundation::mix_double_backward", _mix_double_backward_in_c, _fake_mix_double_backward, None, _third
)
gate = Operator("foundation::gate", _gate_in_c, _fake_gate, _keep_gate, _gate_backward)
gate_backward = Operator(
    "foundation::gate_backward", _gate_backward_in_c, _fake_gate_backward, _keep_gate, _gate_double_backward
)
gate_double_backward = Operator(
    "foundation::gate_double_backward", _gate_double_backward_in_c, _fake_gate_double_backward, None, _third
)
perceptron = Operator(
    "foundation::perceptron", _perceptron_in_c, _fake_perceptron, _keep_perceptron, _perceptron_backward
)
perceptron_backward = Operator(
    "foundation::perceptron_backward",
    _perceptron_backward_in_c,
    _fake_perceptron_backward,
    _keep_perceptron_backward,
    _perceptron_double_backward,
)
perceptron_double_backward = Operator(
    "foundation::perceptron_double_backward",
    _perceptron_double_backward_in_c,
    _fake_perceptron_double_backward,
    None,
    _third,
)
