"""How the linear layers of a converted network are stored, as its config.json says it."""

from dataclasses import dataclass

from .strict import Config, require

BITS = (4, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Quantization(Config):
    """`quantization` in a config.json: the weights of linear layers are kept in few bits."""

    bits: int | None = None
    group_size: int | None = None  # how many numbers of a row share a scale and an offset
    unquantized: tuple[str, ...] = ()  # linear layers that are not, by their paths in the network

    def __post_init__(self) -> None:
        for option, known in (("bits", BITS), ("group_size", GROUP_SIZES)):
            value = getattr(self, option)
            listed = ", ".join(map(str, known))
            require(value in known, f"{option} = {value!r} is not supported, only {listed}")
