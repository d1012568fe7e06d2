"""A file with one network, as the source of this network for a model."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from .layouts import Layout
from .safetensors_file import Header
from .sources import Source

TITLES = {"unet": "UNet", "vae": "VAE", "controlnet": "control model"}  # by component


class Component(NamedTuple):
    """A network in a file."""

    config: dict[str, Any]  # as diffusers would write it
    layout: Layout


class NetworkFile(Source):
    """A file of which a model takes one network. It does not say how a VAE scales latents.

    Args:
        header: of the file.
        component: what the network is in a model, "unet" or "vae".
        network: the network.
    """

    def __init__(self, header: Header, component: str, network: Component):
        super().__init__(header.name, header.file.parent)
        self.header = header
        self.component = component
        self.network = network

    def find(self, path: str) -> Path | None:
        return None

    def files(self) -> Collection[str]:
        return ()

    def config(self, path: str) -> tuple[Any, str]:
        """Return what the network's config file would say, and the name of the file."""
        self._require(path.partition("/")[0])
        return dict(self.network.config), self.name

    def weights(self, component: str, float16: bool) -> list[Path]:
        """Return the file."""
        self._require(component)
        return [self.header.file]

    def is_native(self, file: Path) -> bool:
        return False

    def layout(self, component: str) -> Layout:
        self._require(component)
        return self.network.layout

    def _require(self, component: str) -> None:
        """Check that the network is the one of a component.

        Raises:
            FileNotFoundError: if it is another one.
        """
        if component != self.component:
            raise FileNotFoundError(
                f"{self.name} has no {component}: it is a {TITLES[self.component]} "
                f"(--{self.component})"
            )
