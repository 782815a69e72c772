"""What is read out of compiled programs, on small ones compiled for the CPU."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.aot import largest_batch, parse_spec
from benchmarks.aot_check import failures
from benchmarks.aot_programs import Spec
from benchmarks.aot_report import table
from medadv_jax.distributed import along_data

# As a GPU's compiler prints them: the loop's trips, an asynchronous sum, a library's convolution.
RECORDED = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }

%cast (param_0: f32[3,3,8,8]) -> bf16[3,3,8,8] {
  %param_0 = f32[3,3,8,8]{3,2,1,0} parameter(0)
  ROOT %convert.1 = bf16[3,3,8,8]{3,2,1,0} convert(%param_0)
}

%body (state: (s32[], bf16[4,6,6,8], f32[3,3,8,8])) -> (s32[], bf16[4,6,6,8], f32[3,3,8,8]) {
  %state = (s32[], bf16[4,6,6,8]{3,2,1,0}, f32[3,3,8,8]{3,2,1,0}) parameter(0)
  %images = bf16[4,6,6,8]{3,2,1,0} get-tuple-element(%state), index=1
  %kernel = f32[3,3,8,8]{3,2,1,0} get-tuple-element(%state), index=2
  %casted = bf16[3,3,8,8]{3,2,1,0} fusion(%kernel), kind=kLoop, calls=%cast, metadata={op_name="jit(step)/while/body/convert_element_type"}
  %conv = (bf16[4,6,6,8]{3,2,1,0}, u8[0]{0}) custom-call(%images, %casted), custom_call_target="__cudnn$convForward", backend_config={"conv":{"operand_precision":["DEFAULT","DEFAULT"]}}
  %sum = bf16[4,6,6,8]{3,2,1,0} all-reduce-start(%images), to_apply=%add
  %done = bf16[4,6,6,8]{3,2,1,0} all-reduce-done(%sum)
}

%condition (state: (s32[], bf16[4,6,6,8], f32[3,3,8,8])) -> pred[] {
  %state.1 = (s32[], bf16[4,6,6,8]{3,2,1,0}, f32[3,3,8,8]{3,2,1,0}) parameter(0)
}

ENTRY %main (images: bf16[4,6,6,8], kernel: f32[3,3,8,8]) -> f32[9] {
  %start = (s32[], bf16[4,6,6,8]{3,2,1,0}, f32[3,3,8,8]{3,2,1,0}) tuple(%images)
  %loop = (s32[], bf16[4,6,6,8]{3,2,1,0}, f32[3,3,8,8]{3,2,1,0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %gradient = f32[9]{0:T(128)} parameter(2)
  ROOT %all-reduce.3 = f32[9]{0:T(128)} all-reduce(%gradient), to_apply=%add
}
"""  # noqa: E501


def test_a_recorded_program_is_read():
    found = hlo.describe(RECORDED, {(3, 3, 8, 8)})
    images, kernel = 2 * 4 * 6 * 6 * 8, 4 * 3 * 3 * 8 * 8
    assert found["loops"] == [5]
    assert found["collectives"] == [
        {"op": "all-reduce", "where": "loop", "dtype": "bf16"}
        | {"number": 1, "arrays": 1, "bytes": 5 * images},
        {"op": "all-reduce", "where": "outside", "dtype": "f32"}
        | {"number": 1, "arrays": 1, "bytes": 36},
    ]
    assert found["products"] == {"cudnn convForward bf16×bf16→bf16 DEFAULT loop": 1}
    assert found["float32_parameter_bytes_in_loop_state"] == kernel
    assert found["parameter_cast_bytes_in_loop"] == kernel
    assert found["moved_by_source"]["loop"]["convert_element_type"] == 5 * (kernel + kernel // 2)
    assert found["moved_bytes"]["outside"] == 2 * 36
    assert hlo.aliases(RECORDED) == 2


def test_a_compiled_loop_is_read():
    """Three products of float32 at highest precision, and a cast of the parameter in each."""

    @jax.jit
    def run(weights, x):
        def body(_, x):
            return jnp.dot(x, jnp.tanh(weights), precision="highest")

        return lax.fori_loop(0, 3, body, x)

    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    compiled = run.lower(shape, jax.ShapeDtypeStruct((16, 64), jnp.float32)).compile()
    found = hlo.describe(str(compiled.as_text()), {(64, 64)})
    assert found["loops"] == [3]
    assert sum(found["products"].values()) == 1
    assert "f32×f32→f32" in next(iter(found["products"]))
    assert found["float32_parameter_bytes_in_loop_state"] == 4 * 64 * 64
    assert found["moved_bytes"]["loop"] >= 3 * 4 * (64 * 64 + 2 * 16 * 64)


@pytest.mark.parametrize("inside", [True, False])
def test_a_sum_in_a_loop_is_seen(inside):
    mesh = along_data(jax.devices()[:2])
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*a)) for a in ((), ("data",)))

    @functools.partial(jax.jit, out_shardings=everywhere)
    def run(x):
        def step(carry):
            return carry * 0.5 + (jnp.sum(x @ x.T) if inside else 1.0)

        return lax.fori_loop(0, 4, lambda _, carry: step(carry), jnp.sum(x) if not inside else 0.0)

    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=split)
    found = hlo.describe(str(run.lower(shape).compile().as_text()))
    sums = {each["where"] for each in found["collectives"] if each["op"] == "all-reduce"}
    # XLA may lift what does not change out of the loop: then it is outside, and seen there.
    assert sums
    assert inside or sums == {"outside"}


def healthy() -> dict[str, Any]:
    """A result in which nothing is wrong."""
    spec = {"program": "step", "model": "vgg16", "dtype": "bfloat16", "target": "4xh100"}
    reduced = {"op": "all-reduce", "where": "outside", "dtype": "f32", "number": 2, "bytes": 4}
    products = {"dot bf16×bf16→bf16 default loop": 3}
    loop = {"products": products, "float32_parameter_bytes_in_loop_state": 0}
    return {
        "spec": spec,
        "collectives": [reduced],
        "donated": 1.0,
        "processes": [0, 0, 1, 1],
        **loop,
    }


def test_the_check_names_what_is_wrong():
    assert failures(healthy()) == []
    reduced = healthy()["collectives"][0]
    cases = {
        "2 all-reduce of f32 in the attack loop": {"collectives": [reduced | {"where": "loop"}]},
        "2 all-reduce of bf16: sums must be float32": {
            "collectives": [reduced | {"dtype": "bf16"}]
        },
        "2 all-gather: devices only sum": {"collectives": [reduced | {"op": "all-gather"}]},
        "the rows of a batch do not follow the processes": {"processes": [0, 1, 0, 1]},
        "only 50% of the state is donated": {"donated": 0.5},
        "537.0 MB of float32 parameters are carried by the loop": {
            "float32_parameter_bytes_in_loop_state": 537_000_000
        },
        "no loop holds the network: there is nothing to look into": {"products": {}},
    }
    for expected, change in cases.items():
        assert failures(healthy() | change) == [f"step vgg16 bfloat16 on 4xh100: {expected}"]
    failed = {"spec": healthy()["spec"], "error": "not compiled within 1 s"}
    assert failures(failed) == ["step vgg16 bfloat16 on 4xh100: not compiled within 1 s"]


@pytest.mark.parametrize(("limit", "start"), [(700.0, 64), (33.0, 64), (5.0, 64), (1e4, 64)])
def test_the_largest_batch_is_found_in_few_trials(limit, start):
    tried = []

    def peak(batch):
        tried.append(batch)
        return float("inf") if batch > 800 else 10 + batch + batch**2 / 5000

    fits = [batch for batch in range(32, 2000, 32) if peak(batch) <= limit]
    tried.clear()
    assert largest_batch(peak, limit, start, 32) == max(fits, default=0)
    assert len(tried) <= 10
    assert all(batch % 32 == 0 for batch in tried)


def test_a_spec_is_read_from_the_command_line():
    spec = parse_spec("model=vgg16,batch=32,width=0.5,augment=false,blocks=1;2;1;1")
    assert spec == Spec(model="vgg16", batch=32, width=0.5, augment=False, blocks="1,2,1,1")
    with pytest.raises(ValueError, match="'bach' is no field of a spec"):
        parse_spec("bach=3")


def test_the_page_has_the_table_of_the_committed_results():
    root = Path(__file__).parents[2]
    results = json.loads((root / "benchmarks" / "aot.json").read_text())["programs"]
    assert table(results) in (root / "docs" / "performance.md").read_text()


def test_a_table_has_a_row_for_what_failed():
    failed = {"spec": vars(Spec()), "error": "not compiled within 1 s | late"}
    rows = table([failed]).splitlines()
    assert len(rows) == 3
    assert len({row.count("|") for row in rows}) == 1
