"""Shapes of the two networks: what their constructors, parameter counts and FLOP counts are computed from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkSpec:
    """Backbone and the latents it works on.

    Raises ValueError, naming the fix, when the numbers do not fit together.
    """

    width: int  # d
    depth: int  # L, transformer blocks
    heads: int
    side: int  # latent rows = columns
    channels: int  # latent channels of one level, C
    patch: int  # p
    classes: int  # 0: unconditional
    levels: int  # K of Eq. 1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; change one of them")
        if self.width // self.heads % 4:
            raise ValueError(
                f"width {self.width} / heads {self.heads} = {self.width // self.heads} is not divisible by 4: rotary "
                "embeddings split a head into rows and columns, each in pairs; change width or heads"
            )
        if self.side % self.patch:
            divisors = [p for p in range(1, self.side + 1) if self.side % p == 0]
            raise ValueError(
                f"patch {self.patch} does not divide the {self.side}x{self.side} grid; use one of {divisors}"
            )
        if self.depth % self.levels:
            raise ValueError(
                f"depth {self.depth} is not divisible by the {self.levels} levels of MNG (Eq. 1); "
                "the generator gives one output after each equal stage of blocks"
            )

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2


@dataclass(frozen=True)
class GeneratorSpec(NetworkSpec):
    z_dim: int = 64  # width of the latent code and of the class embedding


@dataclass(frozen=True)
class DiscriminatorSpec(NetworkSpec):
    class_width: int = 2048  # class vector of the projection discriminator
    projector_width: int = 2048  # hidden width of the alignment projector P
    teacher_width: int = 0  # 0: no alignment, no projector
