"""What test_frozen.py freezes: a small program with the engine in it.  Also run as it is, to compare the masks.

`frozen_program.py masks IMAGE FOLDER` writes a mask, an annotation and a suggestion of each shipped network; with any
other arguments it is the command line.
"""

import json
import sys
from pathlib import Path

import activefreq_engine
from activefreq_engine import Session, cli, list_models, masks
from activefreq_engine.models.registry import WEIGHTS


def segment(image: str, folder: Path) -> None:
    shipped = [name for name in list_models() if (WEIGHTS / f"{name}.safetensors").exists()]
    for model in shipped:
        with Session(model, device="cpu", precision="fp32") as session:
            session.set_image(image)
            session.click(160, 230)
            mask = session.click(30, 30, positive=False).mask
            (suggestion,) = session.suggest(1)
            masks.save_png(folder / f"{model}.png", mask)
            annotation = {"suggestion": [suggestion.x, suggestion.y], **masks.to_coco_annotation(mask)}
            (folder / f"{model}.json").write_text(json.dumps(annotation))
    package = str(Path(activefreq_engine.__file__).parent)
    facts = {"shipped": shipped, "package": package, "frozen": getattr(sys, "frozen", False)}
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    if sys.argv[1] == "masks":
        segment(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(cli.main(sys.argv[1:]))
