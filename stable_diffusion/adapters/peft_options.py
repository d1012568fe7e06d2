"""PEFT's options of an adapter: how large its change is.

diffusers keeps them in the metadata of the file, PEFT in `adapter_config.json` beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from ..utils.strict_json import parse_json, read_json, require
from ..utils.wording import abbreviate

MAX_NUMBER = 1e30  # of an option
MAX_PATTERN_SECONDS = 1.0  # for matching a regular expression, which can take very long
CONFIG_NAME = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # diffusers'

SUPPORTED_TYPES = ("LORA", "LOHA", "LOKR")
# LoRA's computes the rank of each layer from its tensors. The tensors of these may not show it.
TYPES_WITH_RANK = ("LOHA", "LOKR")
# Options with which PEFT computes something else, or changes the weights of the model itself.
UNSUPPORTED_OPTIONS = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication"),
    *("megatron_config", "modules_to_save", "monteclora_config", "target_parameters"),
    *("trainable_token_indices", "use_bdlora", "use_qalora"),
)
# Initial values for which PEFT also changes the weights of the model.
UNSUPPORTED_STARTS = ("corda", "loftq", "lora_ga", "olora", "pissa")

_NUMBERS = ("alpha", "lora_alpha", "r")
_PATTERNS = {"alpha_pattern": "alpha", "rank_pattern": "rank"}


@dataclass(frozen=True)
class PeftOptions:
    """The options, by name; diffusers puts `COMPONENT.` before each."""

    options: Mapping[str, Any]

    @property
    def uses_dora(self) -> bool:
        """Return whether they say that the adapter is DoRA."""
        return any(bool(self.options.get(key)) for key in self.options if key.endswith("use_dora"))

    def compute_ratio(self, component: str, name: str, rank: int) -> float:
        """Return the factor of a change without an alpha of its own: alpha / rank.

        It is 1 without options, as in PEFT, whose default alpha is its default rank.

        Args:
            component: the network, such as "unet".
            name: of the layer in the file.
            rank: of the change, as its tensors show it.

        Raises:
            ValueError: if a pattern for layers is not a regular expression or takes too long.
        """
        if self._get(component, "peft_type", "LORA") in TYPES_WITH_RANK:
            rank = self._match(component, "rank_pattern", name, self._get(component, "r", rank))
        alpha = self._get(component, "lora_alpha", self._get(component, "alpha", rank))
        alpha = self._match(component, "alpha_pattern", name, alpha)
        # The square root is for rank-stabilised LoRA, arXiv:2312.03732.
        divisor = math.sqrt(rank) if self._get(component, "use_rslora", False) else rank
        return alpha / divisor

    def _get(self, component: str, option: str, default: Any) -> Any:
        value = self.options.get(f"{component}.{option}", self.options.get(option))
        return default if value is None else value

    def _match(self, component: str, option: str, name: str, default: Any) -> Any:
        """Return the number of the first pattern that matches the end of a layer's name."""
        patterns = self._get(component, option, {})
        return next((patterns[pattern] for pattern in patterns if _matches(pattern, name)), default)


def read_options(file: Path, metadata: Mapping[str, str]) -> PeftOptions:
    """Return the options of an adapter file, from its metadata, or from the file beside it.

    Raises:
        OSError: if the file beside it cannot be read.
        ValueError: if they are not a JSON object, one of them is not of its type, or if the adapter
            is of a kind that is not supported.
    """
    config_file = file.with_name(CONFIG_NAME)
    if METADATA_KEY in metadata:
        where = f"{file}: its {METADATA_KEY}"
    elif config_file.is_file():
        where = f"{config_file}, beside {file.name},"
    else:
        return PeftOptions({})
    try:
        text = metadata.get(METADATA_KEY)
        options = read_json(config_file) if text is None else parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where} is not a JSON object: {error}") from None
    require(isinstance(options, dict), f"{where} is not a JSON object")
    for key, value in options.items():
        if value is not None or key.rpartition(".")[2] in _NUMBERS:
            _check_option(where, key, value)
    return PeftOptions(options)


def _check_option(where: str, key: str, value: Any) -> None:
    """Check the type of an option, and that it asks for nothing that is not supported.

    Raises:
        ValueError: if it does, or is of another type.
    """
    option = key.rpartition(".")[2]
    shown = f"{key} = {abbreviate(value)}"
    if option in _PATTERNS:
        require(isinstance(value, dict), f"{where} has a {key} that is not an object")
        numbers = list(value.values())
    else:
        numbers = [value] if option in _NUMBERS else []
    are_numbers = all(type(number) in (int, float) for number in numbers)
    require(are_numbers, f"{where} has {shown}, which is not a number")
    are_finite = all(abs(number) <= MAX_NUMBER for number in numbers)  # false of NaN, too
    require(are_finite, f"{where} has {shown}, which is not a finite number")
    if option in ("r", "rank_pattern"):
        require(all(n > 0 for n in numbers), f"{where} has {shown}, which is not above 0")
    if option == "peft_type" and value not in SUPPORTED_TYPES:
        raise ValueError(f"{where} says that it is {abbreviate(value)}, which is not supported")
    is_changed = option in UNSUPPORTED_OPTIONS and value not in (False, [], {})
    is_start = option == "init_lora_weights" and str(value).lower().startswith(UNSUPPORTED_STARTS)
    if is_changed or is_start or (option == "bias" and value != "none"):
        raise ValueError(f"{where} has {shown}, which is not supported")


def _matches(pattern: str, name: str) -> bool:
    """Return whether one of PEFT's patterns matches the end of a layer's name.

    Raises:
        ValueError: if the pattern is not a regular expression, or takes too long.
    """
    try:
        match = regex.fullmatch(rf"(.*\.)?({pattern})", name, timeout=MAX_PATTERN_SECONDS)
    except (regex.error, TimeoutError, RecursionError) as error:
        is_slow = isinstance(error, TimeoutError)
        why = "takes too long" if is_slow else "is not a regular expression"
        raise ValueError(f"the pattern {pattern[:100]!r} in its options {why}") from None
    return match is not None
