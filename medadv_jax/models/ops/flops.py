"""FLOPs of convolutions and matrix products, from their shapes.

Counts multiplications and additions, 2 a pair. Products with padding are not counted, as XLA does
not: at 64 px they are more than half of ResNet50's last stage. Elementwise work is not counted.
"""

import math
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def layer_flops(function: Any, *arguments: Any) -> list[int]:
    """Returns the FLOPs of each convolution and matrix product of `function`, in order."""
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> list[int]:
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            found.append(_of_conv(equation))
        elif equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            size = math.prod(equation.outvars[0].aval.shape)
            found.append(2 * size * math.prod(left[axis] for axis in contracted))
        for inner in jaxprs_in_params(equation.params):
            found += _of_jaxpr(inner)
    return found


def _of_conv(equation: Any) -> int:
    """Returns the FLOPs of a forward convolution: no input dilation, one group."""
    params = equation.params
    assert params["feature_group_count"] == 1
    assert set(params["lhs_dilation"]) == {1}
    numbers = params["dimension_numbers"]
    images, kernel = (operand.aval.shape for operand in equation.invars)
    result = equation.outvars[0].aval.shape
    products = result[numbers.out_spec[0]] * result[numbers.out_spec[1]]
    products *= kernel[numbers.rhs_spec[1]]
    for axis, stride in enumerate(params["window_strides"]):
        products *= _pairs(
            images[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            result[numbers.out_spec[2 + axis]],
            stride,
            params["padding"][axis][0],
            params["rhs_dilation"][axis],
        )
    return 2 * products


def _pairs(size: int, window: int, out: int, stride: int, low: int, dilation: int) -> int:
    """Counts the (output, kernel tap) pairs along one axis whose input is no padding."""
    starts = range(-low, -low + stride * out, stride)
    return sum(0 <= start + dilation * tap < size for start in starts for tap in range(window))
