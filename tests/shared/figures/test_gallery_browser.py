"""The gallery in headless Chromium, opened from its file as a reader opens it."""

import re
from urllib.parse import urlsplit

import pytest

from shared.figures import gallery
from shared.figures.cite import cite

TOY = [
    f"toy_superposition.embedded.{name}"
    for name in ("phase_diagram", "dimensionality", "geometry", "unclaimed", "")
]
GATED = [f"gated_sae.embedded.{name}" for name in ("pareto", "shrinkage")]
SMOKE = [f"gated_sae.smoke.{name}" for name in ("pareto", "shrinkage")]


@pytest.fixture(scope="module")
def url(site) -> str:
    return gallery.build(site).as_uri()


@pytest.fixture
def visit(browser, url):
    """Open the gallery, at a hash, in a window; at the end, nothing may have gone wrong in it."""
    contexts, troubles = [], []

    def open_page(fragment="", width=1280, **options):
        viewport = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        page.on("request", lambda request: troubles.append(request.url)
                if urlsplit(request.url).scheme not in ("file", "data") else None)  # fmt: skip
        page.goto(url + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def shown(page) -> list[str]:
    return page.eval_on_selector_all(
        ".card", "cards => cards.filter(c => c.checkVisibility()).map(c => c.id)"
    )


def choose(page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).select_option(option)


def focused(page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.name")


def test_every_figure_is_shown(visit):
    page = visit()
    images = page.locator("img").all()
    assert len(images) == 8
    for image in images:
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") > 0
        assert image.bounding_box()["width"] > 300


def test_citation_is_copied(visit, site):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.locator('[id="gated_sae.smoke.pareto"] .copy').click()
    page.get_by_role("status").get_by_text("Citation copied").wait_for()
    expected = cite("gated_sae/pareto", "smoke", site)
    assert page.evaluate("navigator.clipboard.readText()") == expected


@pytest.mark.parametrize(
    ("copies", "message"),
    [("true", "Citation copied"), ("false", "Selected: press Ctrl+C or ⌘C to copy")],
)
def test_citation_is_selected_where_the_clipboard_is_closed(visit, site, copies, message):
    page = visit()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.evaluate(f"document.execCommand = () => {copies}")
    page.locator(f'[id="{TOY[0]}"] .copy').click()
    page.get_by_role("status").get_by_text(message).wait_for()
    assert page.evaluate("getSelection().toString()") == cite(
        "toy_superposition/phase_diagram", root=site
    )


def test_filter_by_paper_and_profile(visit):
    page = visit()
    assert shown(page) == TOY + GATED + SMOKE
    choose(page, "Paper", "gated sae")
    assert shown(page) == GATED + SMOKE
    choose(page, "Profile", "smoke")
    assert shown(page) == SMOKE
    assert page.locator(".contents li:visible").count() == 2
    assert page.locator("output").inner_text() == "2 of 9 shown"
    choose(page, "Paper", "toy superposition")
    assert shown(page) == []
    assert page.get_by_text("No figure matches").is_visible()
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("document.querySelector('output').textContent === '9 of 9 shown'")
    assert shown(page) == TOY + GATED + SMOKE


@pytest.mark.parametrize(
    ("verdict", "cards"),
    [
        ("All reproduced", [TOY[0], TOY[4]]),
        ("Some not reproduced", [TOY[1], TOY[2]]),
        ("Some failed or missing", GATED),
        ("Any verdict", TOY + GATED + SMOKE),
    ],
)
def test_filter_by_verdict(visit, verdict, cards):
    page = visit()
    choose(page, "Verdict", verdict)
    assert shown(page) == cards


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        ("BIAS best", [GATED[1], SMOKE[1]]),  # every word, in any case, in title or caption
        ("orphan", [TOY[4]]),  # a claim
        ("<script> braces", [TOY[2]]),
        ("no such words", []),
    ],
)
def test_search(visit, text, cards):
    page = visit()
    page.get_by_label("Search").fill(text)
    assert shown(page) == cards


def test_hash_restores_the_view(visit):
    page = visit()
    choose(page, "Verdict", "Some not reproduced")
    page.get_by_label("Search").fill("number & <b>")
    page.keyboard.press("Escape")  # clears the search, as everywhere
    page.get_by_label("Search").fill("feature dimensionality")
    assert shown(page) == [TOY[1]]
    fragment = "#" + urlsplit(page.url).fragment
    again = visit(fragment)
    assert shown(again) == [TOY[1]]
    assert again.get_by_label("Search").input_value() == "feature dimensionality"
    again.evaluate("location.hash = '#paper=gated_sae&profile=embedded'")
    again.wait_for_function("document.querySelector('output').textContent === '2 of 9 shown'")
    assert shown(again) == GATED


def test_a_hash_that_names_nothing_shows_everything(visit):
    page = visit("#paper=gone&verdict=odd&figure=none&more=x")
    assert shown(page) == TOY + GATED + SMOKE


def test_a_link_to_a_figure_keeps_the_filter(visit):
    page = visit("#paper=gated_sae")
    page.locator(".contents").get_by_role("link", name="Relative").first.click()
    assert focused(page) == GATED[1]
    assert urlsplit(page.url).fragment == f"paper=gated_sae&figure={GATED[1]}"
    again = visit("#" + urlsplit(page.url).fragment)
    assert focused(again) == GATED[1]
    plain = visit("#" + GATED[1])
    assert shown(plain) == TOY + GATED + SMOKE
    assert (
        plain.locator(f'[id="{GATED[1]}"] h3').evaluate("h => h.getBoundingClientRect().top") < 400
    )


def test_keys_move_between_figures_that_are_shown(visit):
    page = visit()
    for key, card in [("j", 0), ("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)]:
        page.keyboard.press(key)
        assert focused(page) == TOY[card]
        top = page.locator(f'[id="{TOY[card]}"] h3').bounding_box()["y"]
        bar = page.locator(".controls").bounding_box()
        assert bar["y"] + bar["height"] <= top < 400
    choose(page, "Paper", "gated sae")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert focused(page) == GATED[0]


def test_slash_searches_and_typing_is_not_a_command(visit):
    page = visit()
    page.keyboard.press("/")
    assert focused(page) == "text"
    page.keyboard.type("j/k?")
    assert page.get_by_label("Search").input_value() == "j/k?"
    assert not page.get_by_role("dialog").is_visible()


def test_question_mark_shows_the_keys(visit):
    page = visit()
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keys").is_visible()
    page.keyboard.press("j")
    assert not focused(page)
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    page.get_by_role("button", name="Keys").click()
    assert page.get_by_role("dialog", name="Keys").is_visible()


def test_everything_is_reached_by_tab_with_visible_focus(visit):
    page = visit("#paper=gated_sae&profile=smoke&text=relative")
    state = """() => {
        const element = document.activeElement;
        const name = element.innerText || element.name || element.className;
        return [name, getComputedStyle(element).outlineStyle, element === document.body];
    }"""
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline, done = page.evaluate(state)
        if done:
            break
        seen.append(re.sub(r"\s+", " ", name).strip())
        assert outline != "none", name
    for control in ("Skip to the figures", "text", "Reset", "Keys ?", "plate", "Copy citation",
                    "BibTeX", "Provenance", "SVG", "PNG", "Data"):  # fmt: skip
        assert any(control in entry for entry in seen), (control, seen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(visit, scheme):
    page = visit(width=360, color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("details => { details.open = true }")
    scroll, inner = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
    assert inner == 360
    assert scroll <= inner
    beyond = """() => [...document.querySelectorAll("main *")]
        .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
        .map(element => element.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond) == []


def test_dark_and_light_differ_but_figures_stay_on_white(visit):
    grounds = []
    for scheme in ("light", "dark"):
        page = visit(color_scheme=scheme)
        ground = "element => getComputedStyle(element).backgroundColor"
        grounds.append(page.locator("body").evaluate(ground))
        assert page.locator(".plate").first.evaluate(ground) == "rgb(255, 255, 255)"
    assert len(set(grounds)) == 2


def test_print_has_figures_and_records_but_no_controls(visit, tmp_path):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    hidden = ".controls, .contents, .copy, .citation, .files, .toast, .skip"
    assert page.locator(hidden).count() > 10
    assert not any(element.is_visible() for element in page.locator(hidden).all())
    assert page.locator("body").evaluate("b => getComputedStyle(b).color") == "rgb(0, 0, 0)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert all(record.is_visible() for record in page.locator(".record dl").all())
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".record[open]").count() == 0
    # Pictures below the window are loaded lazily, yet have to be on paper.
    assert len(page.pdf(path=tmp_path / "page.pdf")) > 100_000
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_without_scripts_everything_is_shown_and_no_dead_controls(visit):
    page = visit(java_script_enabled=False)
    assert page.locator(".card:visible").count() == 9
    assert not page.locator(".controls").is_visible()


def test_without_results(browser, make_site):
    page = browser.new_page()
    page.goto(gallery.build(make_site()).as_uri())
    assert page.get_by_role("heading", name="No figures yet").is_visible()
    page.close()
