"""The page in a real browser: nothing complains, every figure is seen, the player plays."""

import io
import time

import chromium
import numpy as np
import pytest
import toy_report as toy
from PIL import Image
from test_page import written
from test_report import NASTY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.BINARY is None, reason="no Chromium here: apt-get install chromium"),
]
FIGURES = """[...document.querySelectorAll('figure, table')].map((figure) => {
  const box = figure.getBoundingClientRect();
  return {width: box.width, height: box.height, inside: box.left >= 0 && box.right <= innerWidth + 0.5
    || figure.closest('.scroll') !== null, inked: figure.querySelectorAll('svg *, canvas, td').length};
})"""
CLIPPED = """[...document.querySelectorAll('figure > svg text')].filter((text) => {
  const mine = text.getBoundingClientRect(), its = text.closest('svg').getBoundingClientRect();
  return mine.left < its.left - 4 || mine.right > its.right + 4 || mine.top < its.top - 4
    || mine.bottom > its.bottom + 4;
}).map((text) => text.textContent)"""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab, tmp_path):
    written(*toy.everything(), tmp_path)
    tab.problems.clear(), tab.requested.clear()
    tab.resize(1200, 900)
    tab.open(tmp_path / "toy.html")
    return tab


def canvas(tab) -> np.ndarray:
    """Pixels of the first player."""
    box = tab.run(
        "(() => { const c = document.querySelector('.player canvas'); c.scrollIntoView({block: 'center'});"
        "const b = c.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })()"
    )
    return np.asarray(Image.open(io.BytesIO(tab.picture())).convert("RGB").crop([round(x) for x in box])).astype(int)


def choose(tab, which: str, value: str) -> None:
    tab.run(
        f"(() => {{ const p = document.querySelector('.player').player; p.play(false); p.frame = 3;"
        f"p.{which}.value = {value!r}; p.{which}.onchange(); }})()"
    )


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (360, 740)])
def test_every_figure_is_seen_whole_and_nothing_complains(page, width, height):
    page.resize(width, height, mobile=width < 600)
    page.run("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    found = page.run(FIGURES)
    assert len(found) >= 12
    assert all(f["width"] > 100 and f["height"] > 20 and f["inside"] and f["inked"] for f in found), found
    assert page.run(OVERFLOW) <= 0 and page.run(CLIPPED) == []
    assert page.problems == [] and len(page.requested) == 1, "the page itself and nothing else"


def test_the_player_plays_pauses_and_goes_where_it_is_told(page):
    still = canvas(page)
    assert (still < 200).any(axis=2).mean() > 0.002, "something is drawn"
    frame = "Number(document.querySelector('.player canvas').dataset.frame)"
    assert page.run("document.querySelector('.controls button').textContent") == "pause", "it plays once it is seen"
    seen = set()
    end = time.monotonic() + 20
    while len(seen) < 4 and time.monotonic() < end:
        seen.add(page.run(frame))
    assert len(seen) >= 4
    page.run("document.querySelector('.controls button').click()")
    halted = page.run(frame)
    time.sleep(0.3)
    assert page.run(frame) == halted
    slider = "document.querySelector('.controls input[type=range]')"
    page.run(f"{slider}.value = 6; {slider}.dispatchEvent(new Event('input'))")
    assert page.run(frame) == 6 and "Frame 7 of 8" in page.run("document.querySelector('.note').textContent")
    assert (canvas(page) != still).any()


def test_attention_and_attack_are_drawn(page):
    pictures = {}
    for shown in ("", "map 0", "map 1", "twin 0"):
        choose(page, "overlays", shown)
        pictures[shown] = canvas(page)
    names = list(pictures)
    assert all((pictures[a] != pictures[b]).any() for i, a in enumerate(names) for b in names[:i])
    yellow, vermilion = np.array([254, 232, 56]), np.array([0xD5, 0x5E, 0])
    bright = {name: (np.abs(p - yellow).sum(2) < 12).sum() for name, p in pictures.items()}
    assert bright["map 0"] > 100 > bright[""], "the joint that gets most attention is the brightest"
    attacked = {name: (np.abs(p - vermilion).sum(2) < 12).sum() for name, p in pictures.items()}
    assert attacked["twin 0"] > 50 > attacked[""]


def test_a_tap_on_a_joint_asks_where_it_looks(page):
    choose(page, "overlays", "map 0")
    before = canvas(page)
    spot = page.run(
        "(() => { const b = document.querySelector('.player canvas').getBoundingClientRect();"
        "const s = document.querySelector('.player').player.spots[2]; return [b.left + s.x, b.top + s.y]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        page.ask("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)
    assert page.run("document.querySelector('.player').player.query") == 2
    assert "From c." in page.run("document.querySelector('.note').textContent")
    assert (canvas(page) != before).any()


def test_a_touch_that_becomes_a_scroll_asks_nothing_and_lets_go(page):
    choose(page, "overlays", "map 0")
    query, turn = (f"document.querySelector('.player').player.{name}" for name in ("query", "turn"))

    def pointer(kind, right=0):
        page.run(
            "(() => { const c = document.querySelector('.player canvas'), b = c.getBoundingClientRect();"
            "const s = document.querySelector('.player').player.spots[2];"
            f"c.dispatchEvent(new PointerEvent({kind!r}, {{bubbles: true, pointerType: 'touch',"
            f"clientX: b.left + s.x + {right}, clientY: b.top + s.y}})); }})()"
        )

    pointer("pointerdown"), pointer("pointercancel")
    before = page.run(turn)
    pointer("pointermove", 80), pointer("pointerup")
    assert page.run(query) is None and page.run(turn) == before, "nothing is held"
    pointer("pointerdown"), pointer("pointerup")
    assert page.run(query) == 2, "a tap still asks"


def test_the_arrow_keys_turn_the_figure(page):
    choose(page, "overlays", "")
    before = canvas(page)
    page.run("document.querySelector('.player canvas').focus()")
    turn = "document.querySelector('.player').player.turn"
    for key, expected in (("ArrowRight", 0.6), ("ArrowLeft", 0.5), ("ArrowLeft", 0.4)):
        page.ask("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert page.run(turn) == pytest.approx(expected)
    assert (canvas(page) != before).any()


def test_a_link_to_a_run_opens_it_and_paper_opens_all(page):
    opened = "[...document.querySelectorAll('details')].filter((fold) => fold.open).length"
    assert page.run(opened) == 0
    page.run("document.querySelector('a[href=\"#run-2\"]').click()")
    assert page.run(f"new Promise((done) => setTimeout(() => done({opened}), 100))") == 1
    assert page.run("document.getElementById('run-2').closest('details').open")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(opened) == page.run("document.querySelectorAll('details').length")
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run(opened) == 1


def test_the_player_follows_a_dark_page(page):
    choose(page, "overlays", "")
    light = canvas(page).mean()
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.run("new Promise((done) => setTimeout(done, 200))")
    dark = canvas(page)
    page.ask("Emulation.setEmulatedMedia", features=[])
    assert light > 200 and dark.mean() < 80 and (dark > 150).all(axis=2).any(), "the figure is seen on both"


def test_it_prints(page):
    assert page.printed().startswith(b"%PDF") and page.problems == []


def test_hostile_strings_run_nothing(tab, tmp_path):
    evil = " ".join([*NASTY, "</script><script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>"])
    data = toy.DATA | {"name": evil, "split": evil}
    train = toy.train_record(method=evil, data=data, curves={evil: [[1, 1.0], [2, 2.0]]}, command=evil)
    shown = toy.record("inspect", method=evil, variant=evil, data=data)
    written([train, shown], {shown.id: {"points": toy.points(name=evil), "samples": toy.samples(evil, evil)}}, tmp_path)
    tab.problems.clear(), tab.requested.clear()
    tab.open(tmp_path / "toy.html")
    assert tab.run("window.hit") is None and tab.problems == [] and len(tab.requested) == 1
    assert "window.hit = 1" in tab.run("document.querySelector('.controls').textContent")


def test_the_policy_stops_a_script_that_is_not_ours(tab, tmp_path):
    text = written(*toy.everything(), tmp_path)
    (tmp_path / "bad.html").write_text(text.replace("</h1>", "<script>window.hit = 1</script></h1>"))
    tab.problems.clear()
    tab.open(tmp_path / "bad.html")
    assert tab.run("window.hit") is None and "Content Security Policy" in tab.problems[0]
