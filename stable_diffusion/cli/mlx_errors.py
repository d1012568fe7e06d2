"""Explain errors of MLX that are not errors of this program: of memory, the GPU and its driver.

MLX raises a RuntimeError whose message has a text of the system: what Metal says of a command
buffer (`NSError.localizedDescription`), what CUDA, cuDNN and cuBLAS say of a status
(`cudaGetErrorString` and others), or what the allocators of MLX say. A GPU computes
asynchronously, so a later operation than the one that failed may raise the error.
"""

import re
from collections.abc import Mapping

TOO_LITTLE_MEMORY = "there is too little memory"
LESS_MEMORY = "try -q, --low-memory, --batch-size 1 or smaller pictures"

GPU_IS_INTERRUPTED = (
    "the system has stopped the GPU, because its work took too long: make smaller pictures, or "
    "fewer at once (--batch-size 1), and end other programs that use the GPU"
)
GPU_IS_LOST = (
    "the GPU has failed, or another program has made it fail: start again; if that does not help, "
    "restart the machine"
)
GPU_IS_TAKEN = "another program has taken the GPU: end that program, or wait for it"
NO_GPU = (
    "there is no GPU that MLX can use: a virtual machine, a sandbox and a remote session may have "
    "none"
)
IN_BACKGROUND = (
    "the system does not let programs in the background use the GPU: start the program in a window "
    "of the Terminal"
)
DRIVER_IS_UNSUITABLE = (
    "this MLX does not suit the GPU or its driver: update the driver, and install the MLX for its "
    "version of CUDA"
)

# Parts of messages, as regular expressions. The first one that is found counts.
EXPLANATIONS: Mapping[str, tuple[str, ...]] = {
    "a weight file changed while it was read: get it again": (r"\[read\]",),
    GPU_IS_INTERRUPTED: (
        *("Impacting Interactivity", "Caused GPU Timeout Error", "Caused GPU Hang Error"),
        "the launch timed out and was terminated",
    ),
    IN_BACKGROUND: ("Insufficient Permission", "BackgroundExecutionNotPermitted"),
    DRIVER_IS_UNSUITABLE: (
        "driver version is insufficient",
        "unsupported display driver",
        "forward compatibility was attempted",
        "no kernel image is available",
        "PTX was compiled with an unsupported toolchain",
        "device kernel image is invalid",
        "CUDNN_STATUS_(NOT_INITIALIZED|VERSION_MISMATCH|SUBLIBRARY|RUNTIME_PREREQUISITE)",
        "CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH",
        r"cublas\w+\(.*failed with code: (1|8)\.",  # not initialized; another architecture
    ),
    NO_GPU: (
        "No Metal device available",
        "no CUDA-capable device is detected",
        "invalid device ordinal",
        "does not support synchronization in managed memory",
    ),
    GPU_IS_TAKEN: ("busy or unavailable",),
    GPU_IS_LOST: (
        *("victim of GPU error", "prior/excessive GPU errors", "Caused GPU Address Fault Error"),
        *("AccessRevoked", "DeviceRemoved", "SubmissionsIgnored"),
        *("unspecified launch failure", "device-side assert", "illegal memory access"),
        *("illegal instruction", "misaligned address", "invalid program counter"),
        *("uncorrectable ECC error", "uncorrectable NVLink error", "hardware stack error"),
        *("driver shutting down", "context is destroyed", "CUDA initialization error"),
        "CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)",
        r"cublas\w+\(.*failed with code: (11|13|14)\.",  # mapping, execution, internal error
    ),
    TOO_LITTLE_MEMORY: (
        *("malloc", "Cannot allocate memory"),
        "Resource temporarily unavailable",  # for another thread
        "start new thread",
        *("Insufficient Memory", "out of memory", "CUDNN_STATUS_(ALLOC_FAILED|.*ALLOCATION)"),
        r"cublas\w+\(.*failed with code: 3\.",
    ),
}


def explain_error(error: RuntimeError | MemoryError, less_memory: str = LESS_MEMORY) -> str | None:
    """Return what is wrong and what to do; None if the error may be one of this program.

    Args:
        less_memory: how the program that runs needs less memory.
    """
    if isinstance(error, MemoryError):
        return f"{TOO_LITTLE_MEMORY}: {less_memory}"
    for explanation, parts in EXPLANATIONS.items():
        if any(re.search(part, str(error)) for part in parts):
            if explanation is TOO_LITTLE_MEMORY:
                return f"{explanation}: {less_memory}"
            return explanation
    return None
