"""Edges of a picture, by the package OpenCV, which is optional.

Canny 1986, "A computational approach to edge detection", doi:10.1109/TPAMI.1986.4767851.
"""

import numpy as np

PACKAGE = "opencv-python-headless"


def require_edges() -> None:
    """Check that the package that draws edges is installed.

    Raises:
        ValueError: if it is not.
    """
    try:
        import cv2  # noqa: F401
    except ImportError:  # or its shared library is missing
        raise ValueError(
            f"edges are drawn by the package {PACKAGE}, which is not installed: pip install "
            f"{PACKAGE}"
        ) from None


def draw_edges(picture: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return the edges of a picture, white on black, as ControlNets for edges are trained on.

    Args:
        picture: uint8 [H, W, 3].
        low, high: the thresholds of the gradient: an edge begins where it is above `high`, and
            continues where it is above `low`.

    Returns:
        uint8 [H, W, 3], 0 or 255.

    Raises:
        ValueError: if the package is not installed.
    """
    require_edges()
    import cv2

    edges = cv2.Canny(np.ascontiguousarray(picture), low, high)  # [H, W]
    return np.repeat(edges[..., None], 3, axis=-1)
