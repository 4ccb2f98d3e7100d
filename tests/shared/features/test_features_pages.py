"""The pages of features in headless Chromium, opened from their files as a reader opens them."""

import re
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
from typer.testing import CliRunner

import shared.features.commands.examples as command
from shared.cli import app
from shared.corpus.shards import Contexts, save_contexts
from shared.features.examples import Example, Near, Portrait, Quantile, Specificity
from shared.features.logits import Promoted
from shared.features.pages import bars, write_pages

EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
KIND = Specificity("arabic", 0.75, 0.5, 0.25, 0.01)
WORDS = (Specificity("␣will", 0.6, 0.4, 1.0, 0.001), Specificity(EVIL, 0.1, 0.1, 0.5, 0.01))
STRONG = Example(3, 5, "arabic", 4.0, 1, (7, 8, 9), ("The ", " will", EVIL), (0.0, 4.0, 1.0))
WEAK = Example(8, 2, "text", 0.5, 0, (8, 9), ("ש", "\u202e·"), (0.5, 0.0))
FIRST = Portrait(
    feature=17,
    label="modal verbs",
    link="https://www.neuronpedia.org/gpt2-small/8-res-jb/17",
    tokens=1000,
    firings=20,
    maximum=4.0,
    mean=1.5,
    width=0.125,
    histogram=(16, 0, 4),
    words=WORDS,
    kinds=(KIND,),
    top=(STRONG, WEAK),
    quantiles=(Quantile(3.0, 4.0, (STRONG,)), Quantile(0.5, 1.0, (WEAK,))),
    nearest=(Near(4, 0.5), Near(99, 0.25)),
    promoted=(Promoted("␣be", 1.5),),
    suppressed=(Promoted(EVIL, -0.5),),
)
RARE = replace(FIRST, feature=4, label=None, link=None, firings=2, maximum=9.0, words=WORDS[1:],
               kinds=(Specificity("dna", 1.0, 1.0, 0.1, 0.01),))  # fmt: skip
SILENT = replace(
    FIRST, feature=9, label=None, firings=0, maximum=0.0, mean=0.0, width=0.0, histogram=(),
    words=(), kinds=(), top=(), quantiles=(), promoted=(), suppressed=(),
)  # fmt: skip


@pytest.fixture
def index(tiny, tmp_path):
    return write_pages(tmp_path, tiny(), "embedded", [FIRST, RARE, SILENT])


@pytest.fixture
def visit(browser, index):
    """Open a page in a window; at the end, nothing may have gone wrong in it."""
    contexts, troubles = [], []

    def open_page(name="index.html", width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url)
                if urlsplit(request.url).scheme not in ("file", "data") else None)  # fmt: skip
        page.goto((index.parent / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def shown(page):
    cells = page.locator("tbody tr:visible td:first-child").all_inner_texts()
    return [int(cell.split()[0]) for cell in cells]


def test_the_index_is_searched_and_ordered(visit):
    page = visit()
    assert shown(page) == [4, 9, 17]
    search = page.get_by_label("Search")
    for text, found in (
        ("WILL", [17]), ("modal", [17]), ("dna", [4]), ("never", [9]), ("will dna", []),
        ("", [4, 9, 17]),
    ):  # fmt: skip
        search.fill(text)
        assert shown(page) == found
        assert page.locator("output").inner_text() == f"{len(found)} of 3"
    page.get_by_label("Order").select_option("maximum")
    assert shown(page) == [4, 17, 9]
    page.get_by_label("Order").select_option("density")
    assert shown(page) == [17, 4, 9]
    page.get_by_label("Order").select_option("share")
    assert shown(page) == [4, 17, 9]
    page.locator("h1").click()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_the_index_leads_to_a_page_and_back(visit):
    page = visit()
    page.get_by_role("link", name="17").click()
    page.wait_for_url(re.compile(r"feature_17\.html$"))
    assert page.locator("h1").inner_text() == "Feature 17: modal verbs"
    page.get_by_role("link", name="4", exact=True).click()
    page.wait_for_url(re.compile(r"feature_4\.html$"))
    page.get_by_role("link", name="All features").click()
    page.wait_for_url(re.compile(r"index\.html$"))


def test_a_page_has_every_panel(visit):
    page = visit("feature_17.html")
    headings = page.locator("h2").all_inner_texts()
    assert headings == [
        "Activations", "Tokens it fires on", "Kinds of text", "Promotes", "Suppresses",
        "Nearest features", "Strongest examples", "Examples by strength",
    ]  # fmt: skip
    assert page.locator("svg.bars rect").count() == 2
    assert page.locator("#top .example").count() == 2
    assert page.locator("#quantiles h3").all_inner_texts() == [
        "part 1 of 2, from 4 down to 3", "part 2 of 2, from 1 down to 0.5",
    ]  # fmt: skip
    facts = page.locator(".facts").inner_text()
    assert "density 2%" in facts
    assert "20 of 1000 tokens" in facts
    link = page.get_by_role("link", name="Neuronpedia").get_attribute("href")
    assert link == FIRST.link
    row = page.locator("tr", has_text="␣will").all_inner_texts()[0].split()
    assert row == ["␣will", "60.0%", "40.0%", "100.0%", "0.1%"]
    assert page.get_by_role("link", name="99").count() == 0  # it has no page


def test_activations_are_seen_in_the_text(visit):
    page = visit("feature_17.html")
    first = page.locator("#top .example").first
    tokens = first.locator(".token")
    assert tokens.count() == 3
    assert tokens.nth(1).inner_text() == " will"
    assert "peak" in tokens.nth(1).get_attribute("class")
    assert tokens.nth(1).get_attribute("title") == "4"
    shades = [opacity(token) for token in tokens.all()]
    assert shades[0] == 0
    assert shades[1] == pytest.approx(0.65, abs=0.01)
    assert shades[2] == pytest.approx(0.08 + 0.57 / 4, abs=0.01)


def opacity(token):
    shade = token.evaluate("token => getComputedStyle(token).backgroundColor")
    return float(re.findall(r"[\d.]+", shade)[-1])


def test_a_feature_that_never_fires_says_so(visit):
    page = visit("feature_9.html")
    assert page.get_by_role("heading", name="It never fires on this text.").is_visible()
    assert page.locator("svg").count() == 0
    assert page.get_by_text("No direct path").count() == 2


@pytest.mark.parametrize("name", ["index.html", "feature_17.html"])
def test_tokens_that_look_like_markup_are_text_on_the_pages(visit, index, name):
    assert "<img" not in (index.parent / name).read_text()
    page = visit(name)
    assert page.locator("img").count() == 0
    assert page.get_by_text("onerror").count() >= 1


@pytest.mark.parametrize("name", ["index.html", "feature_17.html", "feature_9.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_fit_a_telephone(visit, name, scheme):
    page = visit(name, width=360, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_bars_are_square_roots_of_shares():
    found = bars(FIRST)
    assert [bar["height"] for bar in found] == [1.0, 0.0, 0.5]
    assert [bar["count"] for bar in found] == [16, 0, 4]
    assert (found[2]["low"], found[2]["high"]) == (0.25, 0.375)
    assert bars(SILENT) == []


def test_all_features_of_a_dictionary_get_a_page(tiny, tmp_path, monkeypatch):
    tokens = np.random.default_rng(0).integers(1, 250, (6, 12)).astype(np.uint16)
    tokens[:, 0] = 0
    zeros = np.zeros(tokens.shape)
    contexts = Contexts(tokens, zeros.astype(np.uint8), zeros.astype(np.int32))
    save_contexts(tmp_path / "text.safetensors", contexts, {})
    monkeypatch.setattr(command, "opened", lambda *_: tiny())
    options = ["--text", str(tmp_path / "text.safetensors"), "--pages", str(tmp_path / "pages")]
    result = CliRunner().invoke(app, ["examples", "--all", *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(tmp_path / "pages" / "index.html")]
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert names == sorted(["index.html", *(f"feature_{number}.html" for number in range(20))])
