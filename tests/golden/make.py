"""Write the golden outputs of the shipped weights: `python tests/golden/make.py`, after the weights have changed.

Goldens are float64 outputs of the reference on an example image.  They tell a change of the model's code from a change
of its weights: the file names the weights' sha256.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from activefreq_engine.kernels.click_maps import click_maps

from activefreq_engine.models import FreqFormer, create_model, list_models, normalise, read_metadata
from activefreq_engine.models.registry import WEIGHTS

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples"
SHAPE = (192, 256)  # height, width: not square, so that a swapped axis shows
CLICKS = ((128.0, 96.0, True), (20.0, 180.0, False), (150.0, 110.0, True))  # x, y, positive


def outputs(model: FreqFormer, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Coarse logits after one and after three clicks, refined logits, each float64 and thinned out."""
    picture = cv2.imread(str(sorted((EXAMPLES / "images").glob("*"))[0]))[..., ::-1]
    picture = cv2.resize(picture, SHAPE[::-1], interpolation=cv2.INTER_AREA)
    image = normalise(torch.from_numpy(picture).permute(2, 0, 1)[None]).to(dtype)
    model = model.to(dtype).eval()

    def points(clicks: tuple[tuple[float, float, bool], ...]) -> torch.Tensor:
        slots = torch.full((1, 6, 2), -1.0)
        for i, (x, y, positive) in enumerate(clicks):
            slots[0, i if positive else 3 + i] = torch.tensor([x, y])
        return slots

    with torch.inference_mode():
        features = model.encode_image(image)
        previous = torch.zeros(1, 1, *SHAPE, dtype=dtype)
        disks = click_maps(points(CLICKS[:1]), *SHAPE).to(dtype)
        first = model.decode_clicks(features, torch.cat([previous, disks], dim=1))
        disks = click_maps(points(CLICKS), *SHAPE).to(dtype)
        third = model.decode_clicks(features, torch.cat([first.logits.sigmoid(), disks], dim=1))
        side = model.config.refine_size
        crop = torch.nn.functional.interpolate(image[:, :, 32:160, 64:192], size=(side, side), mode="bilinear")
        box = torch.tensor([[64.0, 32.0, 192.0, 160.0]], dtype=dtype)
        inside = click_maps((points(CLICKS[:1]) - torch.tensor([64.0, 32.0])) * (side / 128), side, side).to(dtype)
        refined = model.refine(third, box, crop, inside)
    return {
        "first": first.logits[0, 0, ::6, ::6].double().numpy(),
        "third": third.logits[0, 0, ::6, ::6].double().numpy(),
        "refined": refined[0, 0, ::8, ::8].double().numpy(),
    }


def main() -> None:
    for name in list_models(pretrained=True):
        sha256 = read_metadata(WEIGHTS / f"{name}.safetensors")["sha256"]
        values = outputs(create_model(name, pretrained=True), torch.float64)
        np.savez_compressed(HERE / f"{name}.npz", sha256=np.array(sha256), **values)
        print(f"{name}: written for weights {sha256}")


if __name__ == "__main__":
    main()
