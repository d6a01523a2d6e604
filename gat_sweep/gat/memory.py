"""Memory in closed form: the bytes a worker holds during an iteration, and how to make it fit.

Of eager blocks, the constants are counted from what autograd saves (a test measures them again). Of compiled ones in
bfloat16, the constant is what the peaks of four sizes on an H200 left for it (docs/performance.md), and float32, which
was not measured, has twice as many bytes. The model meets all eight peaks, eager and compiled, within 2.5 %. With the
kernel of qk_kernel.py an eager block saves less.
"""

from dataclasses import dataclass

from gat_sweep.gat.spec import DiscriminatorSpec, GeneratorSpec, NetworkSpec

# Bytes that one block saves per token and channel, by precision, and whether it is compiled for CUDA.
SAVED = {("float32", False): 91.0, ("bfloat16", False): 54.0, ("float32", True): 59.0, ("bfloat16", True): 29.5}
OVERHEAD = 1.35  # inputs, heads and temporaries of the backward pass (docs/performance.md)
HEADROOM = 0.9  # share of a device's memory to use; the rest is for workspaces and fragmentation
SMALLEST_CHUNK = 8  # pairs per call of D; below it, recomputing G's blocks is the better way to save memory


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker, and the choices that set them.

    chunk: (real, fake) pairs per call of D in the D step; gradients accumulate over the calls of a step.
    chunk_g: the same in the G step, where only one of four inputs of D has a gradient.
    checkpointed: blocks of G that are recomputed in the backward pass.
    """

    weights: int  # both networks, gradients, AdamW's moments, EMA, low-precision copies; frozen networks
    activations_g: int
    activations_d: int
    chunk: int
    chunk_g: int
    checkpointed: int

    @property
    def total(self) -> int:
        return self.weights + self.activations_g + self.activations_d


def block_bytes(spec: NetworkSpec, tokens: int, precision: str, on_cpu: bool, compiled: bool = False) -> float:
    """Bytes per image that autograd saves of one block.

    On a CPU it also saves the attention scores. What a compiled block saves there was not measured; it is not more.
    """
    scores = spec.heads * tokens * (2 if precision == "bfloat16" else 4) if on_cpu else 0
    return tokens * (SAVED[precision, compiled and not on_cpu] * spec.width + scores)


@dataclass(frozen=True)
class Job:
    """The networks that one worker trains, and its images per step."""

    generator: GeneratorSpec
    discriminator: DiscriminatorSpec
    params_g: int
    params_d: int
    batch: int
    precision: str
    precision_d: str  # of D in its own step
    on_cpu: bool
    compiled: bool
    params_frozen: int = 0  # of a teacher and a text encoder that run in training

    def memory(self, chunk: int, checkpointed: int) -> Memory:
        """Peak bytes of an iteration, for given choices.

        In the D step one pair is four inputs of D: real and fake, clean and noised.
        """
        g, d = self.generator, self.discriminator
        low = 2 if self.precision == "bfloat16" else 0
        # Averaging over workers needs no memory of its own: the gradients live in the buckets.
        weights = self.params_g * (4 + 4 + 8 + 4 + low) + self.params_d * (4 + 4 + 8 + low) + self.params_frozen * 4
        tokens_g = g.tokens + g.text_tokens
        block_g = block_bytes(g, tokens_g, self.precision, self.on_cpu, self.compiled)
        block_d = block_bytes(d, d.tokens + 1, self.precision_d, self.on_cpu, self.compiled)
        inputs_g = 4 * tokens_g * g.width * checkpointed  # a checkpointed block keeps its input
        live = block_g if checkpointed else 0  # the block that is being recomputed
        per_image = (g.depth - checkpointed) * block_g + inputs_g + live
        return Memory(
            weights=weights,
            activations_g=int(OVERHEAD * self.batch * per_image),
            activations_d=int(OVERHEAD * 4 * chunk * d.depth * block_d),
            chunk=chunk,
            chunk_g=next(n for n in self._equal_chunks() if n <= 4 * chunk),
            checkpointed=checkpointed,
        )

    def _equal_chunks(self) -> list[int]:
        """Divisors of the batch, the largest first: chunks of one size compile only once."""
        return [n for n in range(self.batch, 0, -1) if self.batch % n == 0]

    def fit(self, available: float) -> Memory:
        """The cheapest choices that fit `available` bytes: chunks of D cost nothing, checkpointed blocks a forward.

        Raises ValueError, with both numbers, when nothing fits.
        """
        depth = self.generator.depth
        chunks = self._equal_chunks()
        usual = [n for n in chunks if n >= min(SMALLEST_CHUNK, self.batch)]
        choices = [(chunk, k) for k in range(depth + 1) for chunk in usual]
        choices += [(chunk, depth) for chunk in chunks if chunk not in usual]
        for choice in choices:
            memory = self.memory(*choice)
            if memory.total <= HEADROOM * available:
                return memory
        raise ValueError(
            f"a worker needs {memory.total / 2**30:.1f} GiB for its {self.batch} images but may use only "
            f"{HEADROOM * available / 2**30:.1f} GiB; use more workers (workers.count) or a smaller train.batch"
        )
