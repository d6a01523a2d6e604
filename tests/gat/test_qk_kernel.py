"""qk-norm and RoPE in one kernel each way: against float64 in Triton's interpreter, compiled for a GPU, and on one."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trials import recipe, tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from gat_sweep.errors import UserError
from gat_sweep.gat.discriminator import DiscriminatorBlock
from gat_sweep.gat.generator import GeneratorBlock
from gat_sweep.gat.layers import rope_table
from gat_sweep.recipe import resolve
from gat_sweep.speed.clock import make_batch
from gat_sweep.train.engine import Engine, check_worker

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton comes with torch's builds for CUDA")
DTYPES = ["float32", "bfloat16"]
CUT_OFF = 2**-7  # largest rounding of the interpreter to bfloat16; a GPU's is half of it


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """What helpers/qk.py finds in the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.qk"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    values: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return values


def assert_rounding(off: dict[str, float], dtype: str, rounding: float) -> None:
    """The sums are float32 in both dtypes, and so is dgain."""
    assert off["again"] == 0
    assert max(off["y"], off["dx"]) < (rounding if dtype == "bfloat16" else 1e-6)
    assert off["dgain"] < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_is_the_formula_up_to_rounding(found: dict[str, dict[str, Any]], dtype: str) -> None:
    """y, dx and dgain of every shape, against float64; the same bits in a second run."""
    cases = {name: off for name, off in found["errors"].items() if name.endswith(dtype)}
    assert len(cases) == 5
    for off in cases.values():
        assert_rounding(off, dtype, CUT_OFF)


def test_mistakes_of_a_kernel_would_be_seen(found: dict[str, dict[str, Any]]) -> None:
    assert len(found["planted"]) == 3
    assert all(max(off.values()) > 0.1 for off in found["planted"].values())


def test_attention_is_the_same_with_the_kernel(found: dict[str, dict[str, Any]]) -> None:
    """Outputs and all gradients, with and without readers; in bfloat16 under autocast, also traced by the compiler."""
    off = {name: max(values.values()) for name, values in found["attention"].items()}
    assert off["float32"] < 1e-6 and off["bfloat16"] < 4 * CUT_OFF and off["compiled"] < 4 * CUT_OFF


def test_torch_knows_how_to_trace_the_operators(found: dict[str, dict[str, Any]]) -> None:
    assert len(found["checks"]) == 8 and set(found["checks"].values()) == {"SUCCESS"}


@pytest.mark.parametrize("block", [GeneratorBlock, DiscriminatorBlock])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_block_has_the_same_shapes_and_flops(block: Any, device: str) -> None:
    """Forward on a CUDA device that need not be there; forward and backward on a CPU, under autocast."""
    from gat_sweep.gat.qk_kernel import qk_norm_rope

    results, here = [], device == "cpu"
    for kernel in (None, qk_norm_rope):
        with FakeTensorMode(), torch.device(device), torch.autocast("cpu", torch.bfloat16, enabled=here):
            layer, rope = block(144, 2), rope_table(72, 4, 1)
            layer.attention.kernel = kernel
            x = torch.randn(3, 17, 144, requires_grad=True)
            style = [torch.randn(3, 144)] if block is GeneratorBlock else []
            qkv = layer.attention.qkv(x)
            with FlopCounterMode(display=False) as counter:
                found = [layer(x, *style, rope)]
                if here:  # a backward pass on CUDA asks for the device
                    found[0].sum().backward()
                    found += [p.grad for p in (x, *layer.parameters())]
            found.append(layer.attention._rotated(qkv[:, :, None, :144], torch.ones(1, 72), rope))
        results.append(([(t.shape, t.dtype, t.device.type) for t in found], counter.get_total_flops()))
    assert results[0] == results[1]
    assert results[1][0][-1] == ((1, 3, 2, 17, 72), torch.bfloat16 if here else torch.float32, device)


@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize("width", [64, 72])
def test_a_kernel_builds_for_a_gpu(name: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler refuses what the interpreter takes. Memory is read 16 bytes at a time, and nothing is atomic."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gat_sweep.gat import qk_kernel

    kernel, (wide, rows) = getattr(qk_kernel, name), qk_kernel._tile(width)
    pointers = dict.fromkeys(("x", "y", "dy", "dx"), "*bf16") | dict.fromkeys(("gain", "rope", "dgain"), "*fp32")
    kinds = pointers | {"eps": "fp32", "E": "constexpr", "WIDE": "constexpr", "ROWS": "constexpr"}
    aligned = {*pointers, "stride_b", "stride_t", "stride_s"}
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={n: kinds.get(n, "i32") for n in names},
        constexprs={"E": width, "WIDE": wide, "ROWS": rows},
        attrs={(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in aligned},
    )
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "ld.global.v4" in code and "st.global.v4" in code
    assert not re.search(r"\b(atom|red)\.", code)


def test_the_kernel_is_off_and_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tiny_config().workers.qk_kernel
    config = tiny_config(workers__qk_kernel=True, workers__compile=False, workers__memory_gib=1)
    with pytest.raises(UserError, match=r"needs a CUDA device, not cpu; set workers\.qk_kernel=false"):
        Engine(config, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**34, 2**34))
    check_worker(config, torch.device("cuda"), 8)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match=r"install g\+\+ or set workers.qk_kernel=false"):
        check_worker(config, torch.device("cuda"), 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("default")
class TestOnADevice:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_kernel_is_the_formula_up_to_rounding(self, dtype: str) -> None:
        from helpers.qk import CASES, errors

        for case in CASES.values():
            assert_rounding(errors(case, getattr(torch, dtype), "cuda"), dtype, CUT_OFF / 2)

    @pytest.mark.parametrize(("low", "backend"), [(False, None), (True, None), (False, "inductor"), (True, "inductor")])
    def test_attention_is_the_same_with_the_kernel(self, low: bool, backend: str | None) -> None:
        from helpers.qk import attention

        assert max(attention("cuda", low, backend).values()) < (4 * CUT_OFF if low else 1e-5)

    def test_an_iteration_is_the_same_and_repeats_itself(self) -> None:
        """Losses of two iterations with the kernel, without it, and with it again."""
        device, terms = torch.device("cuda", 0), []
        for kernel in (True, False, True):
            settings = {"workers.qk_kernel": kernel, "train.eps": 1e-3}
            config = resolve(recipe("digits"), settings)
            engine = Engine(config, device)
            attention = engine.ema.blocks[0].attention
            assert bool(attention.kernel) == kernel and "kernel" not in engine.ema.state_dict()
            batches = [make_batch(config, torch.Generator(device).manual_seed(seed)) for seed in range(2)]
            terms.append([engine.iterate(batch) for batch in batches])
        for ours, theirs, again in zip(*terms, strict=True):
            for name in ours:
                assert torch.equal(ours[name], again[name]), name
                assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=2e-3), name
