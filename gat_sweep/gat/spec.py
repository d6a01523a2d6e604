"""Shapes of the two networks, from which constructors, parameter counts and FLOP counts are computed."""

from dataclasses import dataclass
from typing import Literal

NullStyle = Literal["paper", "official"]


@dataclass(frozen=True)
class NetworkSpec:
    """Shape of a backbone and of the latents it works on.

    Raises ValueError, which names the fix, when the numbers do not fit together.
    """

    width: int  # d
    depth: int  # L, transformer blocks
    heads: int
    side: int  # latent rows = columns
    channels: int  # latent channels of one level, C
    patch: int  # p
    classes: int  # 0: unconditional
    levels: int  # K of Eq. 1
    positions: Literal["fixed", "trained"] = "fixed"  # trained: the table of positions is a parameter
    text_width: int = 0  # of a state of the text encoder (A.9); 0: no captions
    text_tokens: int = 0  # states of a caption, N

    def __post_init__(self) -> None:
        if self.classes and self.text_width:
            raise ValueError(
                f"a network has classes ({self.classes}) or captions (text.width {self.text_width}), not both; set "
                "data.classes=0 or text=null"
            )
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
                "the generator has one output after each equal stage of blocks; change one of them"
            )

    @property
    def tokens(self) -> int:
        return (self.side // self.patch) ** 2

    @property
    def conditional(self) -> bool:
        """Whether images have a class or a caption."""
        return bool(self.classes or self.text_width)


@dataclass(frozen=True)
class GeneratorSpec(NetworkSpec):
    """Shape of the generator."""

    z_dim: int = 64  # width of the latent code and of the class embedding


@dataclass(frozen=True)
class DiscriminatorSpec(NetworkSpec):
    """Shape of the discriminator."""

    class_width: int = 2048  # class vector of the projection discriminator
    projector_width: int = 2048  # hidden width of the alignment projector P
    teacher_width: int = 0  # 0: no alignment, no projector


@dataclass(frozen=True)
class Objective:
    """Weights of Eq. 10, with the paper's values."""

    gp_weight: float = 0.1  # lambda_aGP, on each of the two penalties
    gp_sigma: float = 0.01  # sigma of Eq. 7 and 8
    # Precision of D in its own step, if train.precision is bfloat16. "trained": bfloat16, as in the released code; then
    # a part of each penalty is rounding. "tf32": float32, with products in TF32 on a GPU.
    penalty_precision: Literal["trained", "tf32"] = "trained"
    align_weight: float = 1.0  # lambda_REPA
    # "mean": over the N+1 tokens (Eq. 9). "official": the [cls] term plus the mean over patches.
    align_reduction: Literal["mean", "official"] = "mean"
    # Picture that the teacher sees. "paper": resized with antialias, moved and flipped like its latent. "official": the
    # released code's, resized without antialias, flipped, and moved by one pixel at most.
    align_view: Literal["paper", "official"] = "paper"

    def __post_init__(self) -> None:
        """Raises ValueError for a negative weight or a noise that is not positive."""
        if min(self.gp_weight, self.align_weight) < 0 or self.gp_sigma <= 0:
            raise ValueError("gp_weight and align_weight are at least 0, and gp_sigma is above 0")


# The weights of the authors' released code.
OFFICIAL_OBJECTIVE = Objective(gp_weight=0.05, align_reduction="official", align_view="official")


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges of the augmentation; the defaults are the values that GAT was trained with."""

    color: float = 0.5  # probability that brightness, saturation and contrast change, together
    # Means around which saturation and contrast change: of the image after brightness (Zhao et al. 2020), or before
    # it (the released code, which so multiplies the brightness by both factors).
    color_means: Literal["after", "before"] = "after"
    translation: float = 0.125  # largest shift, as a share of the side
    cutout: float = 0.5  # side of the erased square, as a share of the side
    flip: float = 0.4  # probability of a horizontal flip

    def __post_init__(self) -> None:
        """Raises ValueError for a probability or a share outside 0 to 1."""
        for name in ("color", "translation", "cutout", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is between 0 and 1")


def ffn_width(width: int) -> int:
    """Hidden width of the SwiGLU FFN: int(8/3 d), which keeps the parameter count of a plain 4d MLP."""
    return 8 * width // 3
