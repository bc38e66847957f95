"""What all parts of the package agree on: the geometry rule, and the numbers of the protocol and of the network.

**Geometry.**  Pixel i of any grid, image or network, covers [i, i + 1); its centre is i + 0.5.  Points are (x, y), x
along the width.  A click means the pixel that it lies in, and where the network is concerned that pixel's centre.
Boxes are (x0, y0, x1, y1) and half-open: x1 and y1 lie outside.  A box of the image maps linearly onto the whole
network grid, so edges meet edges: no resampling shifts anything.  ``cv2.resize`` follows the same rule; in torch it is
``align_corners=False``.  Arrays are `[H, W]`, rows first.
"""

THRESHOLD = 0.49
"""A pixel is in the mask when its probability is above this, as in RITM and its successors."""

SLOTS = 24
"""Number of clicks of each sign that the network sees: the newest ones.  Empty slots hold (-1, -1)."""

STRIDE = 32
"""Stride of the encoder: both sides of the network's input are multiples of this."""

MIOU_CLICKS = (1, 2, 3, 5, 10, 20)
"""After these clicks the protocol reports the mean IoU."""


OUTLINED = 0.5
"""What the previous answer says inside of a first box or lasso: the object may be here.  Outside it is 0."""

SUGGESTION_SIDE = 512
"""Regions to suggest are looked for on a grid of at most so many pixels a side; the network's own grid is no finer."""

PARTS = 256
"""Into so many parts the way from one level of a mask to the next is divided, along each axis: by the session and, on a
GPU, by the kernel that paints, whose masks are the same bit by bit."""

DEFAULT_MODEL = "freqformer_b0_guided"
"""The weights that run unless others are asked for: those for pictures of all kinds."""


def network_shapes(size: int) -> list[tuple[int, int]]:
    """(height, width) of every network input that an engine of this size may see, the square first."""
    sides = range(size, 0, -STRIDE)
    return [(size, size), *(shape for side in sides if side < size for shape in ((side, size), (size, side)))]
