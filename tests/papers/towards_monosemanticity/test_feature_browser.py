import json
import re
import shutil

import numpy as np
import pytest
import torch
from made_up_analysis import LENGTH, language_model, load_dictionary, make, text
from typer.testing import CliRunner

from papers.towards_monosemanticity import feature_browser, firings
from papers.towards_monosemanticity.examples import Text, Unit
from papers.towards_monosemanticity.feature_browser import (
    Settings,
    ablation_effects,
    choose,
    content,
    render,
    shown_rows,
    text_starts,
)
from shared.activations.sites import Site, replaced_logits
from shared.errors import UserError

SETTINGS = Settings(features=8, per_label=2, texts=5, text_length=20, common=1, logits=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield make(tmp_path_factory.mktemp("analysis"), patch)


@pytest.fixture(scope="module")
def shown(folder):
    return content(folder, SETTINGS)


def test_features_of_a_kind_of_text_come_first_then_random_ones(folder):
    select, score = (firings.load_split(folder, name) for name in firings.SPLITS)
    chosen = choose(select, score, SETTINGS)
    assert list(chosen.values()) == ["dna"] * 2 + ["random"] * 6
    assert choose(select, score, SETTINGS) == chosen
    with pytest.raises(UserError, match="lower `firings`"):
        choose(select, score, SETTINGS.model_copy(update={"firings": 10_000}))


def test_every_panel_is_there(shown):
    assert len(shown["features"]) == 8
    for feature in shown["features"]:
        assert sum(feature["histogram"]["all"]) > 0
        assert all(
            part <= whole
            for part, whole in zip(
                feature["histogram"]["labelled"], feature["histogram"]["all"], strict=True
            )
        )
        assert feature["groups"][0]["name"] == "strongest"
        assert feature["groups"][1]["name"] == "interval 11 of 11"
        assert len(feature["up"]) == len(feature["down"]) == 4
        assert feature["up"][0][1] >= feature["up"][-1][1] >= feature["down"][-1][1]
        assert feature["partner"] == [feature["id"], 1.0]  # b1 is made up like a1
        assert feature["groups"][0]["examples"][0]["l"][4] == "9"
        for group in feature["groups"]:
            for example in group["examples"]:
                assert len(example["t"]) == len(example["l"]) == len(example["e"]) == 9


def test_the_histogram_counts_the_firings_of_score(folder, shown):
    matrix = firings.load_split(folder, "score").features("a1")
    for feature in shown["features"]:
        count = matrix.indptr[feature["id"] + 1] - matrix.indptr[feature["id"]]
        assert sum(feature["histogram"]["all"]) == count


def test_ablation_agrees_with_a_forward_pass_without_the_feature():
    """Against the paper's definition: the feature's part is subtracted from the MLP everywhere."""
    model = language_model("a")
    contexts = text(3).select(slice(0, 4))
    flat = Text(contexts.tokens.ravel(), LENGTH)
    direction = load_dictionary(None, "a1").W_dec[2]
    written = direction @ model.network.transformer.h[0].mlp.c_proj.weight
    random = np.random.default_rng(0)
    f = random.uniform(1, 3, contexts.tokens.shape) * (random.random(contexts.tokens.shape) < 0.3)
    tokens = torch.from_numpy(contexts.tokens.astype(np.int64))
    f = torch.from_numpy(f).float()

    site = Site("mlp_post", 0)
    whole = model.logits(tokens).log_softmax(-1)
    ablated = replaced_logits(model, tokens, site, lambda x: x - f[..., None] * direction)
    change = (whole - ablated.log_softmax(-1))[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]

    rows = np.flatnonzero(f.numpy()[:, :-1].ravel())  # rows of contexts one token shorter
    context, position = rows // (LENGTH - 1), rows % (LENGTH - 1)
    effects = ablation_effects(
        model,
        flat,
        context * LENGTH + position,
        f.numpy()[context, position],
        written.expand(len(rows), -1),
    )
    np.testing.assert_allclose(effects, change.numpy()[context, position], atol=2e-5)
    assert np.abs(effects).max() > 1e-3


def test_texts_show_the_strongest_features_of_each_token(folder, shown):
    split = firings.load_split(folder, "score")
    dense = split.features("a1").toarray()
    starts = text_starts(split, SETTINGS, np.random.default_rng(0))
    assert len(shown["texts"]) == len(starts) == 5
    assert shown["texts"][0]["kind"] == "dna"
    context, start = starts[0]
    rows = context * LENGTH + start + np.arange(20)
    first = shown["texts"][0]
    assert first["t"] == split.flat_tokens[rows].tolist()
    for row, features in zip(rows, first["f"], strict=True):
        values = [value for _, value in features]
        np.testing.assert_allclose(values, np.sort(dense[row])[::-1][: len(values)], atol=0.006)
        assert len(features) == min(3, (dense[row] > 0).sum())


def test_texts_stay_inside_their_context(folder):
    split = firings.load_split(folder, "score")
    for length in (5, 20, LENGTH, 400):
        settings = SETTINGS.model_copy(update={"text_length": length})
        for _, start in text_starts(split, settings, np.random.default_rng(0)):
            assert start >= 1
            assert start + min(length, LENGTH - 1) <= LENGTH


def test_a_unit_without_a_window_has_no_strongest_example():
    flat = Text(np.zeros(LENGTH, dtype=np.uint16), LENGTH)
    fired = Unit(np.array([1]), np.array([1.0]))
    groups = shown_rows(flat, fired, SETTINGS, np.random.default_rng(0))
    assert [(name, len(rows)) for name, rows in groups] == [("strongest", 0)]


def test_the_page_is_the_same_again_and_small(folder, shown):
    page = render(shown)
    assert render(content(folder, SETTINGS)) == page
    without_vocabulary = len(page) - len(json.dumps(shown["vocabulary"]))
    # 150 features in at most 3 MB leave 20 kB to each.
    assert without_vocabulary < 40_000 + 8 * 20_000


def test_tokens_cannot_become_markup(shown):
    evil = "</script><img src=x onerror=alert(1)>"
    page = render({**shown, "vocabulary": [evil] * len(shown["vocabulary"])})
    assert "<img" not in page
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data)["vocabulary"][0] == evil


def test_the_command_writes_the_page(folder, tmp_path):
    import typer

    place = tmp_path / "artifacts" / "towards_monosemanticity" / "tiny"
    shutil.copytree(folder, place)
    app = typer.Typer()
    app.command()(feature_browser.main)
    options = ["--profile", "tiny", "--features", "3", "--into", str(tmp_path)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    page = tmp_path / "results/towards_monosemanticity/tiny/features.html"
    assert page.read_text().startswith("<!doctype html>")
    missing = CliRunner().invoke(app, ["--profile", "none", "--into", str(tmp_path)])
    assert missing.exit_code == 2


@pytest.fixture
def visit(browser, shown, tmp_path):
    """Open the page with some tokens that look like markup; nothing may go wrong in it."""
    troubles, contexts = [], []
    words = list(shown["vocabulary"])
    words[300] = "<img src=x onerror=alert(1)>"
    page_file = tmp_path / "features.html"
    page_file.write_text(render({**shown, "vocabulary": words}), encoding="utf-8")

    def open_page(fragment="", width=1200, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append("a token ran as a script"))
        page.on("requestfailed", lambda request: troubles.append(request.url))
        page.goto(page_file.as_uri() + fragment)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def test_a_feature_is_shown_with_its_panels(visit, shown):
    page = visit()
    first = shown["features"][0]
    assert page.locator("h1").inner_text().startswith(f"a1/{first['id']}")
    assert page.locator("svg.bars rect").count() == 60
    for heading in ("Activations", "Neurons and relatives", "Promotes", "Suppresses", "Examples"):
        assert page.get_by_role("heading", name=heading).is_visible()
    examples = sum(len(group["examples"]) for group in first["groups"])
    assert page.locator(".example").count() == examples
    assert page.locator(".example").first.locator(".token").count() == 9
    assert "activation 9 of 9" in page.locator(".token.middle").first.get_attribute("title")


def test_search_and_keys(visit, shown):
    page = visit()
    page.keyboard.press("/")
    page.keyboard.type(f"a1/{shown['features'][3]['id']} ")
    assert page.locator(".list li").count() >= 1
    page.locator("#search").fill("no such feature anywhere")
    assert page.locator("output").inner_text() == "0 of 8 features"
    page.locator("#search").fill("")
    page.locator("main").focus()
    page.keyboard.press("j")
    page.wait_for_url(re.compile(f"feature={shown['features'][1]['id']}$"))
    page.keyboard.press("k")
    page.wait_for_url(re.compile(f"feature={shown['features'][0]['id']}$"))
    page.locator("#order").select_option("density")
    densities = {feature["id"]: feature["density"] for feature in shown["features"]}
    ids = [int(text) for text in page.locator(".list b").all_inner_texts()]
    assert [densities[i] for i in ids] == sorted(densities.values(), reverse=True)


def test_texts_lead_to_features(visit):
    page = visit("#text=1")
    assert page.locator("h1").inner_text() == "Text 1: dna"
    assert page.get_by_role("tab", name="Texts").get_attribute("aria-selected") == "true"
    page.locator(".text button[style]").first.click()
    assert page.locator(".about li").count() >= 1
    page.keyboard.press("t")
    page.wait_for_url(re.compile("feature="))
    page.get_by_role("tab", name="Texts").click()
    page.wait_for_url(re.compile("text=1"))
    assert page.locator("output").inner_text() == "5 of 5 texts"


def test_tokens_that_look_like_markup_are_text(visit):
    page = visit("#text=2")
    assert page.locator("main img").count() == 0
    page.keyboard.press("t")
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("fragment", ["", "#text=1"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_telephone(visit, fragment, scheme):
    page = visit(fragment, width=360, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    contrast = page.evaluate(
        """() => {
          const light = (element, key) => {
            const [r, g, b] = getComputedStyle(element)[key].match(/\\d+/g).map((x) => x / 255)
              .map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ink = light(document.body, "color");
          const page = light(document.body, "backgroundColor");
          return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
        }"""
    )
    assert contrast > 7


def test_an_unknown_link_shows_the_first_feature(visit, shown):
    page = visit("#feature=999999")
    assert page.locator("h1").inner_text().startswith(f"a1/{shown['features'][0]['id']}")
