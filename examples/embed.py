"""The engine inside your own program: everything an annotation tool needs from it."""

from pathlib import Path

from activefreq_engine import Session

image = Path(__file__).parent / "images" / "ISIC_0014809.jpg"

with Session() as session:  # default weights, best device
    session.set_image(image)  # or an array, or a PIL image
    session.prepare()  # look at it before somebody clicks; background=True does that beside your program
    result = session.click(160, 230)  # x, y in image pixels: this is inside the object
    print(f"{result.mask.sum()} pixels after one click, in {result.elapsed_ms:.0f} ms")
    result = session.click(40, 60, positive=False)  # and this is not
    for s in session.suggest(k=3):  # where the next click is worth most
        print(f"click {'inside' if s.positive else 'outside'} at ({s.x}, {s.y})? score {s.score:.2f}")
    session.undo()
