"""What must hold of a compiled program, whatever the device."""

from collections.abc import Iterator
from typing import Any


def failures(result: dict[str, Any]) -> list[str]:
    """Returns a line for each thing that is not as it must be; [] if all is well."""
    spec = result["spec"]
    name = f"{spec['program']} {spec['model']} {spec['dtype']} on {spec['target']}"
    if "error" in result:
        return [f"{name}: {result['error']}"]
    return [f"{name}: {line}" for line in _wrong(result)]


def _wrong(result: dict[str, Any]) -> Iterator[str]:
    if result["processes"] != sorted(result["processes"]):
        yield "the rows of a batch do not follow the processes"
    if result["spec"]["program"] == "mesh":
        return
    attacked = result["spec"]["program"] in ("step", "attack")
    if attacked and not any(name.endswith(" loop") for name in result["products"]):
        yield "no loop holds the network: there is nothing to look into"
    carried = result["float32_parameter_bytes_in_loop_state"]
    if carried and result["spec"]["dtype"] == "bfloat16":
        yield f"{carried / 1e6:.1f} MB of float32 parameters are carried by the loop"
    for found in result["collectives"]:
        if found["where"] == "loop":
            yield f"{found['number']} {found['op']} of {found['dtype']} in the attack loop"
        elif found["op"] != "all-reduce":
            yield f"{found['number']} {found['op']}: devices only sum"
        elif found["dtype"] != "f32":
            yield f"{found['number']} all-reduce of {found['dtype']}: sums must be float32"
    if result["spec"]["program"].endswith("step") and (result["donated"] or 0) < 0.99:
        yield f"only {result['donated']:.0%} of the state is donated"
