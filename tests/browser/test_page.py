"""The page under a real mouse, a real keyboard and fingers.  Pictures are wider than high, and off the middle."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from activefreq_engine import Session, masks
from tests.serve.client import picture, png

from .conftest import Served

WIDTH, HEIGHT = 640, 400
CLICKS = [(220, 240, True), (540, 60, False), (170, 290, True)]


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return picture(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def file(data: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "wide blob.png"
    path.write_bytes(png(data))
    return path


@pytest.fixture(scope="module")
def wanted(data: np.ndarray) -> list[np.ndarray]:
    """The masks after each of CLICKS."""
    session = Session("freqformer_b0_guided")
    session.set_image(data)
    return [session.click(x + 0.5, y + 0.5, positive).mask.copy() for x, y, positive in CLICKS]


def until(page: Any, test: str, seconds: float = 30) -> None:
    """Wait for an expression; the page's policy forbids Playwright's own way of waiting for one."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(test):
        assert time.monotonic() < deadline, f"never came true: {test}"
        time.sleep(0.01)


def begin(page: Any, served: Served, file: Path) -> None:
    page.goto(served.url)
    page.locator("#file").set_input_files(file)
    opened(page)


def opened(page: Any, width: int = WIDTH) -> None:
    until(page, f"document.querySelector('#picture').naturalWidth === {width}")
    until(page, "document.querySelector('#link').classList.contains('on')")


def place(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a picture's pixel is on the screen."""
    box = page.locator("#picture").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / WIDTH, box["y"] + (y + 0.5) * box["height"] / HEIGHT


def clicked(page: Any, count: int) -> None:
    until(page, f"document.querySelectorAll('.point:not(.waiting)').length === {count}")


def painted(page: Any, layer: str = "mask") -> np.ndarray:
    """The mask as it is on the canvas, pixel by pixel."""
    size = page.evaluate(f"[document.querySelector('#{layer}').width, document.querySelector('#{layer}').height]")
    values = page.evaluate(
        f"""() => {{ const c = document.querySelector('#{layer}');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, out = [];
        for (let i = 3, run = 0, last = 0; i < d.length + 4; i += 4) {{
          const v = i < d.length && d[i] > 0 ? 1 : 0;
          if (i >= d.length || v !== last) {{ out.push(run); run = 0; last = v; }}
          run++;
        }} return out; }}"""
    )
    flat = np.repeat(np.arange(len(values)) % 2 == 1, values)
    return flat.reshape(size[1], size[0])


def click_all(page: Any, wanted: list[np.ndarray]) -> None:
    for n, (x, y, positive) in enumerate(CLICKS, 1):
        page.mouse.click(*place(page, x, y), button="left" if positive else "right")
        clicked(page, n)
        check(page, wanted[n - 1])


def check(page: Any, mask: np.ndarray) -> None:
    """A click of the screen lies within half a pixel of the one meant, so masks may differ by a few pixels."""
    deadline = time.monotonic() + 20
    while (differ := (painted(page) != mask).mean()) > 0.004:
        assert time.monotonic() < deadline, f"{differ:.2%} of the pixels differ"
        time.sleep(0.05)


@pytest.mark.parametrize("density", [1, 2])
def test_mouse(
    new_page: Callable[..., Any], served: Served, file: Path, wanted: list[np.ndarray], density: int
) -> None:
    page = new_page(device_scale_factor=density)
    begin(page, served, file)
    click_all(page, wanted)
    page.keyboard.press("Control+z")
    clicked(page, 2)
    check(page, wanted[1])
    page.keyboard.press("Control+Shift+Z")
    clicked(page, 3)
    check(page, wanted[2])
    # zoomed in at the pointer, moved by space and by the middle button, a click still hits its pixel
    page.keyboard.press("r")
    clicked(page, 0)
    page.mouse.move(*place(page, 220, 240))
    page.mouse.wheel(0, -500)
    before = place(page, 220, 240)
    page.keyboard.down(" ")
    page.mouse.move(500, 400)
    page.mouse.down()
    page.mouse.move(560, 430, steps=4)
    page.mouse.up()
    page.keyboard.up(" ")
    after = place(page, 220, 240)
    assert (after[0] - before[0], after[1] - before[1]) == pytest.approx((60, 30), abs=0.5)
    assert page.locator(".point").count() == 0, "moving is not clicking"
    page.mouse.click(*after)
    clicked(page, 1)
    check(page, wanted[0])
    x, y = page.evaluate("document.querySelector('#picture').getBoundingClientRect().width") / WIDTH, CLICKS[0]
    assert x > 1.5, y


def dragged(page: Any, points: list[tuple[int, int]], button: str = "left") -> None:
    page.mouse.move(*place(page, *points[0]))
    page.mouse.down(button=button)
    for point in points[1:]:
        page.mouse.move(*place(page, *point), steps=4)
    page.mouse.up(button=button)


def drawn(page: Any) -> list[tuple[str, bool]]:
    """What is marked on the picture: kind and sign."""
    return [
        tuple(found)
        for found in page.evaluate(
            """[...document.querySelectorAll('.point:not(.waiting)')].map(n =>
            [['click', 'box', 'scribble', 'lasso'].find(k => n.classList.contains(k)), n.classList.contains('add')])"""
        )
    ]


def test_boxes_scribbles_and_lassos(new_page: Callable[..., Any], served: Served, file: Path, tmp_path: Path) -> None:
    page = new_page()
    begin(page, served, file)
    page.keyboard.down("Shift")
    dragged(page, [(90, 130), (360, 350)])
    page.keyboard.up("Shift")
    clicked(page, 1)
    page.keyboard.down("Alt")
    dragged(page, [(170, 220), (220, 240), (260, 230)])
    dragged(page, [(400, 60), (500, 70), (560, 120)], button="right")
    page.keyboard.up("Alt")
    clicked(page, 3)
    page.keyboard.press("g")
    dragged(page, [(100, 130), (170, 140), (160, 190), (105, 185)], button="right")
    clicked(page, 4)
    page.screenshot(path=tmp_path / "prompts.png")
    expected = [("box", True), ("scribble", True), ("scribble", False), ("lasso", False)]
    assert drawn(page) == expected
    assert page.locator(".drawn").count() == 4
    mask = painted(page)
    assert mask[240, 220]
    assert not mask[150:170, 125:145].any()
    page.reload()
    opened(page)
    clicked(page, 4)
    assert drawn(page) == expected
    assert np.array_equal(painted(page), mask)
    for left in (3, 2, 1, 0):
        page.keyboard.press("Control+z")
        clicked(page, left)
    assert page.locator(".drawn").count() == 0
    for _ in range(4):
        page.keyboard.press("Control+Shift+Z")
    clicked(page, 4)
    until(page, f"document.querySelector('#undo').disabled === false && {int(mask.sum())} > 0")
    deadline = time.monotonic() + 10
    while not np.array_equal(painted(page), mask):
        assert time.monotonic() < deadline
    # a drag out of the picture ends at its edge; a mere click with a tool is a click
    page.keyboard.press("b")
    box = page.locator("#picture").bounding_box()
    page.mouse.move(*place(page, 500, 300))
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 9, box["y"] + box["height"] + 9, steps=3)
    page.mouse.up()
    clicked(page, 1)
    page.mouse.click(*place(page, 560, 350))
    clicked(page, 2)
    assert drawn(page) == [("box", True), ("click", True)]


def test_prompts_by_keyboard_and_by_finger(
    new_page: Callable[..., Any], served: Served, file: Path, tmp_path: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    page.locator("#stage").focus()
    page.keyboard.press("b")
    for key in ("ArrowLeft", "Shift+ArrowLeft", "a", "Shift+ArrowDown", "Shift+ArrowLeft", "a"):
        page.keyboard.press(key)
    clicked(page, 1)
    page.keyboard.press("w")
    for key in ("a", "Shift+ArrowUp", "a", "Enter"):
        page.keyboard.press(key)
    clicked(page, 2)
    page.keyboard.press("g")
    for key in ("x", "Shift+ArrowUp", "x", "Shift+ArrowRight", "x", "Escape", "x", "ArrowUp", "x"):
        page.keyboard.press(key)
    assert page.locator("#sketch .drawn").count() == 1
    for key in ("Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    for key in ("x", "Shift+ArrowUp", "x", "Shift+ArrowRight", "x", "Enter"):
        page.keyboard.press(key)
    clicked(page, 3)
    assert drawn(page) == [("box", True), ("scribble", True), ("lasso", False)]

    phone = new_page(viewport={"width": 412, "height": 800}, has_touch=True, is_mobile=True, device_scale_factor=2)
    begin(phone, served, file)
    session = phone.context.new_cdp_session(phone)

    def stroke(*points: tuple[int, int]) -> None:
        for kind, point in zip(["touchStart"] + ["touchMove"] * (len(points) - 1), points, strict=True):
            x, y = place(phone, *point)
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    phone.locator("#tool-box").tap()
    stroke((90, 130), (200, 200), (360, 350))
    clicked(phone, 1)
    phone.locator("#tool-scribble").tap()
    phone.locator("#remove").tap()
    stroke((400, 60), (480, 70), (560, 120))
    clicked(phone, 2)
    phone.screenshot(path=tmp_path / "prompts-phone.png")
    assert drawn(phone) == [("box", True), ("scribble", False)]


def test_objects_and_reload(new_page: Callable[..., Any], served: Served, file: Path, wanted: list[np.ndarray]) -> None:
    page = new_page()
    begin(page, served, file)
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
    page.keyboard.press("n")
    until(page, "document.querySelectorAll('#objects li').length === 2")
    page.mouse.click(*place(page, 600, 30))
    clicked(page, 1)
    until(page, "document.querySelectorAll('#objects li')[1].textContent.includes('1')")
    page.keyboard.press("1")
    until(page, "document.querySelectorAll('#objects .pick')[0].getAttribute('aria-current') === 'true'")
    check(page, wanted[0])
    assert painted(page, "others").any()
    page.reload()
    opened(page)
    clicked(page, 1)
    check(page, wanted[0])
    assert page.locator("#objects li").count() == 2
    # rename and delete
    page.get_by_role("button", name="Rename Object 2").click()
    page.keyboard.type("ground")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#objects li')[1].textContent.includes('ground')")
    page.get_by_role("button", name="Delete ground").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    until(page, "document.querySelectorAll('#objects li').length === 1")
    assert not painted(page, "others").any()


def test_keyboard_alone(new_page: Callable[..., Any], served: Served, file: Path) -> None:
    page = new_page()
    page.on("filechooser", lambda _: None)  # they are caught from here on, not from some moment after the key
    page.goto(served.url)
    until(page, "document.querySelector('#link').textContent === 'ready'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "open"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(file)
    opened(page)
    assert page.evaluate("document.activeElement.id") == "open"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "stage":
            break
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press("ArrowLeft")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    for _ in range(2):
        page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("a")
    clicked(page, 1)
    assert painted(page).sum() > 1000
    page.keyboard.press("Shift+ArrowUp")
    page.keyboard.press("x")
    clicked(page, 2)
    # the ring: accept what is suggested, refuse it, skip it
    if page.evaluate("document.querySelector('#hint').childElementCount") == 0:
        time.sleep(1)
    if page.evaluate("document.querySelector('#hint').childElementCount"):
        page.keyboard.press("s")
        until(page, "document.querySelector('#hint').childElementCount === 0")
    for key, element, attribute in (
        ("h", "show-mask", "false"),
        ("l", "show-outline", "false"),
        ("u", "show-heat", "true"),
    ):
        page.keyboard.press(key)
        assert page.locator(f"#{element}").get_attribute("aria-pressed") == attribute
    until(page, "document.querySelector('#heat').width > 1 && !document.querySelector('#heat').hidden")
    # everything that can be pressed has a name
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, a')].filter(n => n.checkVisibility() &&
        !(n.textContent.trim() || n.getAttribute('aria-label') || n.labels?.length || n.type === 'file'))
        .map(n => n.id)"""
    )
    assert nameless == []


def test_the_ring_is_answered(new_page: Callable[..., Any], served: Served) -> None:
    page = new_page()
    page.goto(served.url)
    page.locator("#file").set_input_files(Path(__file__).parents[2] / "examples" / "images" / "ISIC_0014809.jpg")
    opened(page, 384)
    box = page.locator("#picture").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.42, box["y"] + box["height"] * 0.6)
    clicked(page, 1)
    until(page, "document.querySelector('#hint').childElementCount > 0")
    page.keyboard.press("Enter")
    clicked(page, 2)
    until(page, "document.querySelector('#hint').childElementCount > 0")
    page.keyboard.press("Shift+Enter")
    clicked(page, 3)
    kinds = page.evaluate("[...document.querySelectorAll('.point')].map(n => n.classList.contains('add'))")
    assert kinds == [True, True, False]


def test_fingers(new_page: Callable[..., Any], served: Served, file: Path, wanted: list[np.ndarray]) -> None:
    page = new_page(viewport={"width": 412, "height": 800}, has_touch=True, is_mobile=True, device_scale_factor=2)
    begin(page, served, file)
    page.touchscreen.tap(*place(page, *CLICKS[0][:2]))
    clicked(page, 1)
    assert (painted(page) != wanted[0]).mean() < 0.02  # a finger's pixel is larger than a picture's
    page.locator("#remove").tap()
    page.touchscreen.tap(*place(page, *CLICKS[1][:2]))
    clicked(page, 2)
    assert page.locator(".point.remove").count() == 1
    # one finger moves, two zoom; neither clicks
    before, width = page.locator("#picture").bounding_box(), page.locator("#picture").bounding_box()["width"]
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        session.send(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]},
        )

    touch("touchStart", (200, 200))
    for step in range(1, 6):
        touch("touchMove", (200 + 10 * step, 200 + 6 * step))
    touch("touchEnd")
    moved = page.locator("#picture").bounding_box()
    assert (moved["x"] - before["x"], moved["y"] - before["y"]) == pytest.approx((50, 30), abs=12)
    touch("touchStart", (150, 200), (250, 200))
    for step in range(1, 6):
        touch("touchMove", (150 - 10 * step, 200), (250 + 10 * step, 200))
    touch("touchEnd")
    assert page.locator("#picture").bounding_box()["width"] == pytest.approx(2 * width, rel=0.1)
    assert page.locator(".point").count() == 2


def test_exports_drop_and_paste(
    new_page: Callable[..., Any], served: Served, file: Path, wanted: list[np.ndarray]
) -> None:
    page = new_page()
    page.goto(served.url)
    hand_over = """([kind, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], 'wide blob.png', {type: 'image/png'}));
      const event = kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})
        : new ClipboardEvent('paste', {clipboardData: data, bubbles: true});
      document.body.dispatchEvent(event);
    }"""
    page.evaluate(hand_over, ["paste", list(file.read_bytes())])
    opened(page)
    first = page.evaluate("document.querySelector('#picture').src")
    page.evaluate(hand_over, ["drop", list(file.read_bytes())])
    until(page, f"document.querySelector('#picture').src !== {json.dumps(first)}")  # until then nothing can be clicked
    opened(page)
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
    check(page, wanted[0])
    shown = painted(page)
    found = {}
    for name in ("PNG", "Indexed PNG", "COCO", "GeoJSON", "NIfTI"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        found[name] = (download.value.suggested_filename, Path(download.value.path()).read_bytes())
    assert found["PNG"][0] == "wide blob-object1.png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["PNG"][1]))) == 255, shown)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["Indexed PNG"][1]))) == 1, shown)
    annotation = json.loads(found["COCO"][1])["annotations"][0]
    assert np.array_equal(masks.from_coco_rle(annotation["segmentation"]), shown)
    assert json.loads(found["GeoJSON"][1])["features"]
    assert found["NIfTI"][0].endswith(".nii.gz")


def test_the_page_survives_the_server(
    new_page: Callable[..., Any], tmp_path: Path, file: Path, wanted: list[np.ndarray]
) -> None:
    served = Served(tmp_path)
    page = new_page()
    begin(page, served, file)
    page.mouse.click(*place(page, *CLICKS[0][:2]))
    clicked(page, 1)
    served.kill()
    until(page, "!document.querySelector('#link').classList.contains('on')")
    page.mouse.click(*place(page, *CLICKS[1][:2]), button="right")  # while nobody is there
    until(page, "document.querySelectorAll('.point.waiting').length === 1")
    served.start()
    until(page, "document.querySelector('#link').classList.contains('on')", 60)
    clicked(page, 2)
    check(page, wanted[1])
    page.keyboard.press("Control+z")
    clicked(page, 1)
    check(page, wanted[0])
    served.kill()


def test_two_tabs_on_one_session(new_page: Callable[..., Any], served: Served, file: Path) -> None:
    page = new_page()
    begin(page, served, file)
    page.mouse.click(*place(page, *CLICKS[0][:2]))
    clicked(page, 1)
    other = page.context.new_page()
    other.goto(page.url)
    opened(other)
    until(page, "document.querySelector('#stage').classList.contains('ended')")
    page.mouse.click(*place(page, *CLICKS[1][:2]), button="right")  # would be lost: it takes no clicks
    page.keyboard.press("n")
    other.mouse.click(*place(other, *CLICKS[2][:2]))
    clicked(other, 2)
    assert page.locator(".point").count() == 1
    page.locator("#notice button").click()
    until(page, "!document.querySelector('#stage').classList.contains('ended')")
    clicked(page, 2)
    assert page.locator("#objects li").count() == 1
    until(other, "document.querySelector('#stage').classList.contains('ended')")


def test_the_token_comes_in_the_fragment_and_leaves_the_address(
    new_page: Callable[..., Any], tmp_path: Path, file: Path
) -> None:
    served = Served(tmp_path, "--token", "the-token-of-this-test")
    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    assert served.url.endswith("#token=the-token-of-this-test")
    begin(page, served, file)
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
    assert "token" not in page.url
    assert not any("the-token" in url for url in asked)
    served.kill()


@pytest.mark.parametrize("installed", [True, False])
def test_the_first_screen_promises_what_the_server_can_read(
    new_page: Callable[..., Any], served: Served, installed: bool
) -> None:
    page = new_page()

    def info(route: Any) -> None:
        answer = route.fetch()
        reads = ["pictures", *(["volumes"] if installed else [])]
        route.fulfill(response=answer, json={**answer.json(), "reads": reads})

    page.route("**/v1/info", info)
    page.goto(served.url)
    until(page, "document.querySelector('#link').textContent === 'ready'")
    assert ("DICOM" in page.locator("#reads").text_content()) == installed
    assert page.locator("#reads-more").is_visible() != installed


def first_of_folder(new_page: Callable[..., Any], tmp_path: Path, data: np.ndarray, count: int) -> tuple[Any, Served]:
    """A page with the first picture of a server's folder of so many, and the server."""
    (tmp_path / "images").mkdir()
    for n in range(count):
        (tmp_path / "images" / f"{n}.png").write_bytes(png(data))
    served = Served(tmp_path / "journal", "--images", str(tmp_path / "images"))
    page = new_page()
    page.goto(served.url)
    until(page, "!document.querySelector('#folder').hidden")
    page.keyboard.press("]")
    opened(page)
    return page, served


def test_a_folder_is_gone_through(new_page: Callable[..., Any], tmp_path: Path, data: np.ndarray) -> None:
    page, served = first_of_folder(new_page, tmp_path, data, 3)
    until(page, "document.querySelector('#folder-place').textContent === '1 of 3'")
    assert page.locator("#folder-previous").is_disabled()
    assert page.locator("#folder-export").is_disabled()
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
    page.keyboard.press("d")
    until(page, "document.title.startsWith('1.png')")
    clicked(page, 0)
    page.keyboard.press("k")
    until(page, "document.title.startsWith('2.png')")
    until(page, "document.querySelector('#folder-next').disabled")
    assert page.inner_text("#folder-count") == "1 done, 1 skipped, 1 open"
    page.keyboard.press("[")
    page.keyboard.press("[")
    until(page, "document.title.startsWith('0.png')")
    with page.expect_download() as download:
        page.locator("#folder-export").click()
    coco = json.loads(Path(download.value.path()).read_bytes())
    assert [i["file_name"] for i in coco["images"]] == ["0.png"]
    assert len(coco["annotations"]) == 1
    until(page, "document.querySelector('#folder-state span').textContent === 'This picture is done.'")
    page.locator("#folder-reopen").click()
    until(page, "document.querySelector('#folder-state').hidden")
    assert page.inner_text("#folder-count") == "0 done, 1 skipped, 2 open"
    page.locator("#folder-done").click()  # goes on to 2.png, and Enter is not for the button any more
    until(page, "document.title.startsWith('2.png')")
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert page.inner_text("#folder-count") == "1 done, 1 skipped, 1 open"
    served.kill()


def test_a_picture_on_its_way_is_named_and_the_one_before_takes_no_clicks(
    new_page: Callable[..., Any], served: Served, file: Path, data: np.ndarray
) -> None:
    page = new_page()
    begin(page, served, file)
    held: list[Any] = []
    page.route("**/image?name=*", lambda route: held.append(route))
    page.locator("#file").set_input_files(file)
    until(page, "document.querySelector('#stage').classList.contains('opening')")
    assert page.locator("#name").text_content() == f"Opening {file.name} …"
    page.mouse.click(*place(page, *CLICKS[0][:2]))
    page.wait_for_timeout(200)
    assert page.locator(".point").count() == 0
    page.route("**/image?slice=*", lambda route: held.append(route))
    held[0].continue_()
    while len(held) < 2:  # the session is there, its picture is still on its way
        page.wait_for_timeout(10)
    assert page.locator("#name").text_content() == f"Opening {file.name} …"
    held[1].continue_()
    until(page, "!document.querySelector('#stage').classList.contains('opening')")
    assert file.name in page.locator("#name").text_content()
    page.mouse.click(*place(page, *CLICKS[0][:2]))
    clicked(page, 1)


def test_keys_pressed_before_a_picture_is_there(new_page: Callable[..., Any], tmp_path: Path, data: np.ndarray) -> None:
    """Each moves by one, only the last picture is shown, and none is marked that was not seen."""
    (tmp_path / "images").mkdir()
    for n in range(5):
        (tmp_path / "images" / f"{n}.png").write_bytes(png(data))
    served = Served(tmp_path / "journal", "--images", str(tmp_path / "images"))
    page = new_page()
    shown: list[str] = []
    page.on("websocket", lambda socket: shown.append(socket.url))
    page.goto(served.url)
    until(page, "!document.querySelector('#folder').hidden")

    def slowly(route: Any) -> None:
        time.sleep(0.3)
        route.continue_()

    page.route("**/v1/sessions", slowly)
    for _ in range(3):
        page.keyboard.press("]")
    page.keyboard.press("d")
    until(page, "document.title.startsWith('2.png')")
    opened(page)
    assert len(shown) == 1
    for _ in range(2):
        page.keyboard.press("[")
    until(page, "document.title.startsWith('0.png')")
    opened(page)
    page.keyboard.press("d")
    page.keyboard.press("k")
    until(page, "document.title.startsWith('1.png')")
    assert page.inner_text("#folder-count") == "1 done, 0 skipped, 4 open"
    served.kill()


def test_a_slide_is_looked_at_closer(new_page: Callable[..., Any], tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    (tmp_path / "images").mkdir()
    pixels = picture(3000, 2000)
    with tifffile.TiffWriter(tmp_path / "images" / "slide.tif") as out:
        out.write(pixels, subifds=1, tile=(256, 256), photometric="rgb", compression="deflate")
        out.write(pixels[::4, ::4], subfiletype=1, tile=(256, 256), photometric="rgb", compression="deflate")
    served = Served(tmp_path / "journal", "--images", str(tmp_path / "images"))
    page = new_page()
    page.goto(served.url)
    until(page, "!document.querySelector('#folder').hidden")
    page.keyboard.press("]")
    opened(page, 750)
    until(page, "document.querySelector('#slide-where').textContent === '1 : 4'")
    box = page.locator("#picture").bounding_box()
    page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.wheel(0, -700)
    page.keyboard.press("v")
    until(page, "document.querySelector('#slide-where').textContent === 'full size'")
    page.mouse.click(box["x"] + 0.35 * box["width"], box["y"] + 0.6 * box["height"])
    clicked(page, 1)
    page.reload()
    clicked(page, 1)
    until(page, "!document.querySelector('#slide').hidden")
    with page.expect_download() as download:
        page.locator("#slide-export").click()
    (feature,) = json.loads(Path(download.value.path()).read_bytes())["features"]
    mask = masks.from_geojson(feature, 2000, 3000)
    y, x = np.mgrid[:2000, :3000]
    blob = ((x - 0.35 * 3000) / (0.2 * 3000)) ** 2 + ((y - 0.6 * 2000) / (0.27 * 2000)) ** 2 < 1
    assert mask[1200, 1050]
    assert (mask & blob).sum() > 0.7 * mask.sum()
    page.locator("#slide-whole").click()
    opened(page, 750)
    assert page.locator("#slide-regions button").count() == 1
    served.kill()


def test_a_picture_that_does_not_come_is_not_clicked_in(
    new_page: Callable[..., Any], served: Served, file: Path, data: np.ndarray, tmp_path: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    (tmp_path / "second.png").write_bytes(png(255 - data))
    page.route("**/image?slice=*", lambda route: route.fulfill(status=507, json={"detail": "no picture now"}))
    page.locator("#file").set_input_files(tmp_path / "second.png")
    until(page, "document.querySelector('#notice').textContent.includes('no picture now')")
    assert page.locator("#stage").get_attribute("class") == "opening"
    page.mouse.click(*place(page, *CLICKS[0][:2]))
    page.wait_for_timeout(300)
    assert page.locator(".point").count() == 0
    page.unroute("**/image?slice=*")
    before = page.evaluate("document.querySelector('#picture').src")
    page.locator("#notice button").click()
    until(page, f"document.querySelector('#picture').src !== {json.dumps(before)}")
    until(page, "!document.querySelector('#stage').classList.contains('opening')")
    page.mouse.click(*place(page, *CLICKS[0][:2]))
    clicked(page, 1)


def test_the_uncertainty_is_of_what_is_shown(new_page: Callable[..., Any], served: Served, file: Path) -> None:
    page = new_page()
    begin(page, served, file)

    def shown() -> bool:
        return bool(
            page.evaluate(
                """() => { const c = document.querySelector('#heat');
                const {data} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
                return data.some((v, i) => i % 4 === 3 && v); }"""
            )
        )

    def comes() -> None:
        deadline = time.monotonic() + 30
        while not shown():
            assert time.monotonic() < deadline, "no uncertainty came"

    page.keyboard.press("u")
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
    comes()
    page.keyboard.press("n")
    until(page, "document.querySelectorAll('#objects li').length === 2")
    assert not shown(), "a new object has none"
    page.keyboard.press("1")
    comes()
    page.keyboard.press("r")
    clicked(page, 0)
    assert not shown()
    page.keyboard.press("Control+y")
    comes()
    first = page.title()
    page.locator("#file").set_input_files(Path(__file__).parents[2] / "examples" / "images" / "ISIC_0014809.jpg")
    until(page, f"document.title !== {json.dumps(first)}")
    opened(page, 384)
    assert not shown()


def test_an_export_has_all_clicks_that_were_made_before_it(
    new_page: Callable[..., Any], served: Served, file: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    with page.expect_download() as early:
        page.evaluate(
            """() => {
            const stage = document.querySelector('#stage');
            const b = document.querySelector('#picture').getBoundingClientRect();
            const press = {bubbles: true, button: 0, pointerId: 1, pointerType: 'mouse'};
            for (let i = 0; i < 8; i++) {
              const at = {clientX: b.left + b.width * (0.2 + 0.08 * i), clientY: b.top + b.height * (0.3 + 0.05 * i)};
              stage.dispatchEvent(new PointerEvent('pointerdown', {...press, ...at}));
            }
            document.querySelector('[data-format=coco]').click(); }"""
        )
    clicked(page, 8)
    with page.expect_download() as late:
        page.get_by_role("button", name="COCO", exact=True).click()
    assert Path(early.value.path()).read_bytes() == Path(late.value.path()).read_bytes()


def test_the_address_of_another_session_leads_there(
    new_page: Callable[..., Any], served: Served, file: Path, data: np.ndarray, tmp_path: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    first = page.url
    (tmp_path / "second.png").write_bytes(png(data))
    page.locator("#file").set_input_files(tmp_path / "second.png")
    until(page, "document.title.startsWith('second.png')")
    with page.expect_event("load"):
        page.evaluate(f"location.href = {json.dumps(first)}")  # as if it were typed
    until(page, f"document.title.startsWith({json.dumps(file.name)})")
    with page.expect_event("load"):
        page.evaluate("history.back()")
    until(page, "document.title.startsWith('second.png')")


def test_names_of_objects_and_files(new_page: Callable[..., Any], served: Served, file: Path, tmp_path: Path) -> None:
    page = new_page()
    begin(page, served, file)
    rename = "document.querySelector('#objects input')"
    page.get_by_role("button", name="Rename Object 1").click()
    page.keyboard.type("a name that is wider than the panel")
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true})"
    page.evaluate(f"{rename}.dispatchEvent({composing})")
    assert page.locator("#objects input").count() == 1, "this Enter chose a character"
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#objects').textContent.includes('wider')")
    remove, panel = page.locator("#objects button.small").last.bounding_box(), page.locator("aside").bounding_box()
    assert remove["x"] + remove["width"] <= panel["x"] + panel["width"] - 10
    other = page.context.new_page()
    other.goto(page.url)
    opened(other)
    until(page, "document.querySelector('#stage').classList.contains('ended')")
    page.locator("#objects button.small").first.click()
    page.keyboard.type("not any more")
    page.keyboard.press("Enter")
    assert "wider" in page.inner_text("#objects")
    # the end of a long name says what the file is; half of a character cannot be sent
    page.evaluate(
        """bytes => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], 'x'.repeat(199) + '\\u{1F600}'.repeat(99) + '.nii.png'));
        document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }""",
        list(file.read_bytes()),
    )
    until(page, "document.title.includes('\\u{1F600}.nii.png ')")


def test_notices_are_read_whole_and_take_no_clicks(
    new_page: Callable[..., Any], tmp_path: Path, file: Path, data: np.ndarray
) -> None:
    served = Served(tmp_path / "journal")
    page = new_page()
    begin(page, served, file)
    tall = tmp_path / "tall.png"
    tall.write_bytes(png(np.rot90(data)))
    page.locator("#file").set_input_files(tall)
    opened(page, HEIGHT)
    page.route("**/exports/png", lambda route: route.fulfill(status=507, json={"detail": "not now"}))
    page.get_by_role("button", name="PNG", exact=True).click()
    until(page, "!document.querySelector('#notice').hidden")
    page.locator("#notice").click(position={"x": 5, "y": 5})
    page.wait_for_timeout(300)
    assert page.locator(".point").count() == 0
    page.keyboard.press("n")  # it was of something earlier
    until(page, "document.querySelector('#notice').hidden")
    session = page.url.split("s=")[1]
    page.close()
    served.kill()
    events = tmp_path / "journal" / session / "events.jsonl"
    head, rest = events.read_text().split("\n", 1)
    events.write_text(json.dumps({**json.loads(head), "model": "freqformer_b0_general"}) + "\n" + rest)
    served.start()
    page = new_page()
    page.goto(f"{served.url}#s={session}")
    until(page, "document.querySelector('#notice').textContent.endsWith('--model freqformer_b0_general')")
    served.kill()


def test_a_session_that_is_over_leaves_the_first_screen(
    new_page: Callable[..., Any], served: Served, file: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
    page.evaluate("fetch(`v1/sessions/${location.hash.slice(3)}`, {method: 'DELETE'})")
    until(page, "document.querySelector('#notice').textContent.startsWith('This session is over')")
    assert page.locator("#empty").is_visible()
    assert not page.locator("#picture").is_visible()
    assert page.inner_text("#name") == ""


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30_000, 3)])
def test_zoom_of_pictures_that_fit_beyond_its_limits(
    new_page: Callable[..., Any], served: Served, tmp_path: Path, width: int, height: int
) -> None:
    page = new_page(viewport={"width": 900, "height": 500})
    (tmp_path / "odd.png").write_bytes(png(np.full((height, width), 90, np.uint8)))
    page.goto(served.url)
    page.locator("#file").set_input_files(tmp_path / "odd.png")
    opened(page, width)
    fitted = page.locator("#picture").bounding_box()["width"]
    page.keyboard.press("+")
    assert page.locator("#picture").bounding_box()["width"] >= fitted
    page.keyboard.press("0")
    page.keyboard.press("-")
    assert page.locator("#picture").bounding_box()["width"] <= fitted


def test_a_key_that_is_held_answers_and_marks_once(
    new_page: Callable[..., Any], tmp_path: Path, data: np.ndarray
) -> None:
    page, served = first_of_folder(new_page, tmp_path, data, 4)

    def hold(key: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            page.keyboard.down(key)
            page.wait_for_timeout(30)
        page.keyboard.up(key)

    page.keyboard.press("ArrowLeft")
    hold("a", 0.5)
    clicked(page, 1)
    hold("d", 1.5)
    until(page, "document.title.startsWith('1.png')")
    assert page.inner_text("#folder-count") == "1 done, 0 skipped, 3 open"
    opened(page)
    page.locator("#stage").focus()
    before = place(page, 0, 0)
    hold("+", 0.3)
    assert place(page, 0, 0)[0] < before[0] - 100, "what moves goes on"
    served.kill()


def test_a_drag_that_is_given_up_draws_and_moves_nothing(
    new_page: Callable[..., Any], served: Served, file: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    before = place(page, 0, 0)
    for key, again in (("Escape", "b"), ("c", "c")):
        page.keyboard.press("b")
        page.mouse.move(*place(page, 100, 100))
        page.mouse.down()
        page.mouse.move(*place(page, 200, 150))
        page.keyboard.press(key)
        page.mouse.move(*place(page, 400, 300), steps=3)
        page.mouse.up()
        page.keyboard.press(again)
        assert place(page, 0, 0) == before
        assert page.locator(".point, #sketch .drawn").count() == 0
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)


def test_a_folder_that_is_dropped_is_not_called_a_dead_server(
    new_page: Callable[..., Any], served: Served, file: Path
) -> None:
    page = new_page()
    begin(page, served, file)
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(file.parent)], "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})
    until(page, "document.querySelector('#notice').textContent.startsWith('The file cannot be read')")
    page.mouse.click(*place(page, 220, 240))
    clicked(page, 1)
